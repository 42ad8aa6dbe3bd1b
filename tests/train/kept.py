"""Checkpoints of the flow, for tests: what an engine writes, and everything that one holds."""

from atoken.train.checkpoints import Checkpoints
from atoken.train.optimisers import MOMENTS


def saved(engine, folder):
    """What an engine has, as a resumed run finds it."""
    folder.mkdir(parents=True, exist_ok=True)
    checkpoints = Checkpoints(folder)
    if engine.rank == 0:
        checkpoints.keep_frozen(engine.objective.frozen(), None)
    engine.save(checkpoints)
    return checkpoints.newest()


def contents(checkpoint, objective):
    """All tensors of a checkpoint by kind and name, flat."""
    sizes = {name: parameter.numel() for name, parameter in objective.named_parameters()}
    keys = {f"{kind}/{name}": size for kind in ("weights", "ema", *MOMENTS) for name, size in sizes.items()}
    return {key: checkpoint.read(key, 0, size) for key, size in keys.items() if key in checkpoint}
