"""Networks for images of one size and any number, which ``torch.export`` can follow: all positions are constants.

``ATokenModel`` reads sizes from its tokens, which an exported graph cannot.
"""

from __future__ import annotations

from torch import Tensor, nn

from atoken.layers import Positions
from atoken.model import ATokenModel
from atoken.patches import PATCH, from_patches, grid, grid_coords, to_patches
from atoken.rope import rotation
from atoken.transformer import Stack


class ImageEncoder(nn.Module):
    """Images (B, 3, H, W) in [-1, 1] -> latents (B, C, H / 16, W / 16) and pooled vectors (B, D), not normalised."""

    def __init__(self, model: ATokenModel, height: int, width: int) -> None:
        super().__init__()
        self.encoder = _GridStack(model.encoder, height, width)
        self.pool, self.to_latent = model.pool, model.to_latent
        self.quantise = model.quantiser.quantise if model.quantiser else nn.Identity()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """As ``ATokenModel.encode_pixels``."""
        features_BLD = self.encoder(to_patches(x.permute(0, 2, 3, 1)[:, None]).flatten(1, 3))
        mean, _ = self.to_latent(features_BLD).float().chunk(2, dim=-1)
        pooled = self.pool.finish(self.pool.update_dense(self.pool.start(x.shape[0]), features_BLD))
        return self.quantise(mean).mT.unflatten(2, self.encoder.cells), pooled


class ImageDecoder(nn.Module):
    """Latents (B, C, H / 16, W / 16) -> images (B, 3, H, W), nominally in [-1, 1]."""

    def __init__(self, model: ATokenModel, height: int, width: int) -> None:
        super().__init__()
        self.size = (1, height, width)
        self.decoder, self.to_patch = _GridStack(model.decoder, height, width), model.to_patch

    def forward(self, latents: Tensor) -> Tensor:
        """As ``ATokenModel.decode_latents``."""
        patches = self.to_patch(self.decoder(latents.flatten(2).mT))
        return from_patches(patches.unflatten(1, (1, *self.decoder.cells)), self.size)[:, 0].permute(0, 3, 1, 2)


class _GridStack(nn.Module):
    """One side of the model on images of one size: (B, L, inputs) -> (B, L, D)."""

    position_LD: Tensor
    rotation: Tensor | None

    def __init__(self, stack: Stack, height: int, width: int) -> None:
        super().__init__()
        self.stack, self.cells = stack, grid(PATCH[0], height, width)[1:]
        device, base = stack.position.weight.device, stack.rotary_base
        coords = grid_coords(1, *self.cells).to(device)
        self.register_buffer("position_LD", stack.position.resized(*self.cells).detach())
        self.register_buffer("rotation", None if base is None else rotation(coords, stack.head_width, base))

    def forward(self, feats_BLP: Tensor) -> Tensor:
        samples, length = feats_BLP.shape[:2]
        x_BLD = self.stack.inputs(feats_BLP.to(self.stack.inputs.weight.dtype))
        x_ND = (x_BLD + self.position_LD.to(x_BLD.dtype)).flatten(0, 1)
        rotated = None if self.rotation is None else self.rotation.repeat(1, samples, 1, 1)
        positions = Positions(length, rotated, length, rotated)
        for block in self.stack.blocks:
            x_ND = block(x_ND, positions)
        return self.stack.norm(x_ND).unflatten(0, (samples, length))
