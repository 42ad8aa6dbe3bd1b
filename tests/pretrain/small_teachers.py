"""Small teachers, of random weights that are not near zero, so that mistakes show."""

from itertools import chain
from unittest.mock import patch

import torch
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection, Siglip2Config, Siglip2Model

from atoken.metrics import vgg
from atoken.metrics.stlpips import published_stlpips
from atoken.pretrain.teachers import ImageTower, Teachers
from tests.model.sizes import small_config
from tests.random_networks import stlpips_state
from tests.tokenizer.texts import text_sizes

BLOCKS = ((6, 2), (6, 2), (8, 3), (8, 3), (10, 3))  # VGG-16, thin
MEAN, STD = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)
CLIP = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
WIDTH = small_config().encoder_width
VISION = {
    "hidden_size": WIDTH, "intermediate_size": small_config().encoder_mlp, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_patches": 256, "patch_size": 16,
}  # fmt: skip


def small_vgg():
    with patch.object(vgg, "BLOCKS", BLOCKS):
        return _frozen(vgg.VGG16, gain=2**0.5)


def small_heads():
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.rand(width, generator=generator) for width, _ in BLOCKS)


def small_clip():
    config = CLIPVisionConfig(image_size=vgg.SIDE, patch_size=56, projection_dim=24, **CLIP)
    return ImageTower(_frozen(lambda: CLIPVisionModelWithProjection(config)), MEAN, STD)


def small_siglip(**text):
    """Of the sizes of ``small_model``, and of the texts of ``tests/tokenizer/texts.py``."""
    config = Siglip2Config(vision_config=VISION, text_config=text_sizes(WIDTH) | text)
    siglip = _frozen(lambda: Siglip2Model(config))
    torch.nn.init.constant_(siglip.logit_scale, 4.0)
    return siglip


def small_teachers():
    stlpips = published_stlpips(stlpips_state("alex"), "alex")
    return Teachers(small_vgg(), small_heads(), small_clip(), small_siglip(), stlpips)


def parameters(teachers):
    networks = teachers.vgg, teachers.clip.model, teachers.siglip, teachers.stlpips
    return list(chain.from_iterable(network.parameters() for network in networks))


def _frozen(make, gain=1.0):
    torch.manual_seed(0)
    model = make().eval().requires_grad_(False)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.normal_(std=gain * parameter[0].numel() ** -0.5)
    return model
