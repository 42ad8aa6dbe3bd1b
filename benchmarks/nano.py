"""The bundled models on photographs that they never saw: PSNR against PCA, and use of the codes.

``python -m benchmarks.nano`` prints two tables. The photographs are the seven that scikit-image bundles, at native
size. The oracle is PCA with 48 components a 16x16 patch, fitted on these very photographs (400 random patches each,
seed 0) and applied to all their whole patches. Use of the codes is counted over 100,000 held-out tokens: all tokens of
the photographs, the rest procedural images of a seed that training never used.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from skimage import data

from atoken.data.synthetic.procedural import make_image
from atoken.io import Image
from atoken.metrics.pixels import psnr, ssim
from atoken.tokenizer import Tokenizer, load

PATCH, COMPONENTS, FITTED = 16, 48, 400
HELD_OUT_SEED, HELD_OUT_TOKENS = 1_000_003, 100_000


def photographs() -> dict[str, np.ndarray]:
    """Name -> (H, W, 3) uint8."""
    return {
        "astronaut": data.astronaut(), "coffee": data.coffee(), "chelsea": data.chelsea(), "rocket": data.rocket(),
        "motorcycle_left": data.stereo_motorcycle()[0], "hubble_deep_field": data.hubble_deep_field(),
        "retina": data.retina(),
    }  # fmt: skip


def pca_reconstructions(images: dict[str, np.ndarray]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Whole patches of each image and their reconstruction from the oracle's 48 numbers, both uint8."""
    rng = np.random.default_rng(0)
    fitted = []
    for pixels in images.values():
        rows, columns = (rng.integers(0, side - PATCH + 1, FITTED) for side in pixels.shape[:2])
        fitted += [pixels[r : r + PATCH, c : c + PATCH].reshape(-1) for r, c in zip(rows, columns, strict=True)]
    values = np.stack(fitted).astype(np.float64)
    mean = values.mean(0)
    basis = np.linalg.svd(values - mean, full_matrices=False)[2][:COMPONENTS]
    for pixels in images.values():
        height, width = (side // PATCH * PATCH for side in pixels.shape[:2])
        blocks = pixels[:height, :width].reshape(height // PATCH, PATCH, width // PATCH, PATCH, 3).swapaxes(1, 2)
        flat = blocks.reshape(-1, PATCH * PATCH * 3)
        back = (flat - mean) @ basis.T @ basis + mean
        yield flat, np.clip(np.rint(back), 0, 255).astype(np.uint8)


def used_codes(tokenizer: Tokenizer, images: dict[str, np.ndarray]) -> torch.Tensor:
    """(100,000, G) codes of held-out images."""
    codes, index = [tokenizer.encode(pixels).codes for pixels in images.values()], 0
    while sum(map(len, codes)) < HELD_OUT_TOKENS:
        codes.append(tokenizer.encode(Image(make_image(HELD_OUT_SEED, index, 256, 256).frames[0])).codes)
        index += 1
    return torch.cat(codes)[:HELD_OUT_TOKENS]


def main() -> None:
    """Print both tables."""
    images = photographs()
    oracle = [psnr(theirs, ours) for theirs, ours in pca_reconstructions(images)]
    models = {name: load(name) for name in ("nano", "nano-d")}
    back = {name: {p: m.decode(m.encode(x)).pixels for p, x in images.items()} for name, m in models.items()}
    print("| photograph | size | oracle PSNR dB | nano | nano-d | nano SSIM | nano-d SSIM |\n|" + " --- |" * 7)
    rows = []
    for (name, pixels), best in zip(images.items(), oracle, strict=True):
        figures = [best, *(psnr(back[m][name], pixels) for m in models), *(ssim(back[m][name], pixels) for m in models)]
        rows.append(figures)
        print(f"| {name} | {pixels.shape[1]}x{pixels.shape[0]} | " + " | ".join(_figures(figures)) + " |")
    print("| mean | | " + " | ".join(_figures(list(np.mean(rows, axis=0)))) + " |\n")
    codes = used_codes(models["nano-d"], images)
    print("| group | codes used of 4096 | share | perplexity |\n| --- | --- | --- | --- |")
    for group in range(codes.shape[1]):
        counts = torch.bincount(codes[:, group], minlength=4096).double()
        shares = counts[counts > 0] / counts.sum()
        print(
            f"| {group} | {len(shares)} | {len(shares) / 4096:.1%} | {torch.exp(-(shares * shares.log()).sum()):.0f} |"
        )


def _figures(values: list[float]) -> list[str]:
    return [f"{value:.2f}" for value in values[:3]] + [f"{value:.4f}" for value in values[3:]]


if __name__ == "__main__":
    main()
