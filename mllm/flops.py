"""FLOPs of a step on a vision-language model, by its matrices: micro-batches have too many lengths to count each.

A product of a matrix with a token is 2 FLOPs for each of its numbers; for the gradient it takes as many for the input,
and as many for the matrix where that is trained. Attention is of all pairs of a row, since the mask is dense.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import nn

from atoken.train.cost import Flops
from mllm.data.batches import ConversationBatch
from mllm.model import ATokenVLForConditionalGeneration
from mllm.slowfast import FEATURE


def flops_of(model: ATokenVLForConditionalGeneration) -> Callable[[ConversationBatch], Flops]:
    """How many a micro-batch takes. What is trained is what requires a gradient now; the tower runs forward alone."""
    language, config = model.language_model, model.config.text_config
    head = language.get_output_embeddings()
    layers = list(_linear(language, head))
    token = sum(size for size, _ in layers)
    token_trained = sum(size for size, trained in layers if trained)
    answer, head_trained = 2 * head.weight.numel(), head.weight.requires_grad
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    pair = 4 * config.num_attention_heads * width * config.num_hidden_layers
    projector = 2 * sum(weight.numel() for name, weight in model.projector.named_parameters() if weight.ndim > 1)
    projector -= 2 * model.projector.separators.weight.numel()
    down = 2 * model.projector.down.weight.numel()  # alone in the projector, its input needs a gradient
    tower, vision = model.vision_tower, model.config.vision_config
    patch = sum(size for size, _ in _linear(tower.encoder))
    pair_of_patches = 4 * vision.hidden_size * vision.num_hidden_layers

    def counted(batch: ConversationBatch) -> Flops:
        length, targets = len(batch), batch.supervised
        features = sum(int((one.layout == FEATURE).sum()) for one in batch.media)
        inside = token * length + pair * length**2
        patches = [(one.patches.lengths, one.size[0]) for one in batch.media if one.patches is not None]
        seen = 0
        for lengths, steps in patches:
            tiles = 1 if len(lengths) > 1 else -(-steps // tower.steps)
            seen += sum(patch * count + pair_of_patches * count**2 // tiles for count in lengths)
        forward = seen + inside + answer * targets + projector * features
        backward = inside + pair * length**2 + token_trained * length + answer * targets * (1 + head_trained)
        return Flops(forward, backward + (projector + down) * features, inside)

    return counted


def _linear(module: nn.Module, head: nn.Module | None = None) -> Iterator[tuple[int, bool]]:
    """FLOPs of a token in each linear layer but the head, and whether it is trained."""
    for one in module.modules():
        if isinstance(one, nn.Linear) and one is not head:
            yield 2 * one.in_features * one.out_features, one.weight.requires_grad
