"""Small models for tests, with weights that are not near zero, so that mistakes show."""

import torch

from atoken.model import ATokenConfig, ATokenModel


def small_config(**changes):
    sides = {
        f"{side}_{name}": value
        for side in ("encoder", "decoder")
        for name, value in {"width": 96, "layers": 2, "heads": 2, "mlp": 128}.items()
    }
    return ATokenConfig(**(sides | changes))


def small_model(seed=0, **changes):
    torch.manual_seed(seed)
    model = ATokenModel(small_config(**changes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=parameter.shape[-1] ** -0.5)
    return model
