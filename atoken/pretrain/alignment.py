"""Losses that align visual vectors with texts: the pairwise sigmoid loss and the distillation of similarities.

Sources: AToken, section 3.3 (sigmoid loss for videos and assets, distillation for images); Zhai et al. 2023 (arXiv
2303.15343) for the sigmoid loss. Shape letters: ``B`` samples of this rank, ``T`` texts of all ranks, ``E`` width of
the common space.

Both are over the samples of all ranks. Every rank, even one without samples, calls a loss at the same time and then
its backward pass. The loss of the whole batch is the **mean over ranks** of what the ranks return, because an engine
averages gradients over ranks: a rank returns the share of its rows times the number of ranks, so that the averaged
gradient of every parameter is that of one process with the whole matrix. Texts must require a gradient on all ranks or
on none.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the usual name
from torch.utils.checkpoint import checkpoint


def sigmoid_loss(
    visual_BE: Tensor,
    text_BE: Tensor,
    log_scale: Tensor,
    bias: Tensor,
    *,
    captioned_B: Tensor | None = None,
    labels_B: Tensor | None = None,
    group: dist.ProcessGroup | None = None,
    chunk: int = 4096,
) -> Tensor:
    """Sum over all pairs of ``-log sigmoid(z * (exp(log_scale) * visual . text + bias))``, over the number of samples.

    z is 1 for a sample and its own text, else -1, even if two texts are the same. Vectors have length 1.
    labels_B: int64; with them z is 1 for a sample and the texts of all samples with its label. Captions made of labels
    repeat: as negatives of each other, those of frequent classes would get the lower logits.
    captioned_B: bool, which samples have a text; one without does not count as a sample, and its vectors may have any
    values. chunk: texts at a time; (B, chunk) logits are in memory, also in the backward pass.
    Returns this rank's share (see the head of this file), fp32 also under autocast; 0 if no rank has a sample.
    Raises: ValueError if the numbers of samples and texts differ.
    """
    if len(visual_BE) != len(text_BE):
        raise ValueError(f"Each sample needs a text: got {len(visual_BE)} samples and {len(text_BE)} texts.")
    if captioned_B is not None:
        visual_BE, text_BE = visual_BE[captioned_B], text_BE[captioned_B]
        labels_B = None if labels_B is None else labels_B[captioned_B]
    with torch.autocast(visual_BE.device.type, enabled=False):
        counts = _counts(visual_BE, group)
        text_TE, first = _gathered(_exact(text_BE), counts, group)
        scaled_BE = _exact(log_scale).exp() * _exact(visual_BE)
        if labels_B is None:
            own_B = torch.arange(first, first + len(visual_BE), device=visual_BE.device)
            label_T = torch.arange(len(text_TE), device=visual_BE.device)
        else:
            own_B, label_T = labels_B, _gathered(labels_B[:, None], counts, group)[0][:, 0]
        inputs = [
            (scaled_BE, text_CE, _exact(bias), own_B, label_C)
            for text_CE, label_C in zip(text_TE.split(chunk), label_T.split(chunk), strict=True)
        ]
        sums = [checkpoint(_pairs, *each, use_reentrant=False, preserve_rng_state=False) for each in inputs]
        return _share(torch.stack(sums).sum(), counts)


def distillation(
    student_BE: Tensor,
    teacher_BE: Tensor,
    text_BE: Tensor,
    log_scale: Tensor,
    *,
    temperature: float = 2.0,
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    """KL divergence of the student's softmax over texts from the teacher's, mean over images.

    Scores are ``exp(log_scale) * visual . text / temperature`` with the scale of the frozen teacher, whose bias is the
    same for all texts and cancels in the softmax. Vectors have length 1; a rank may have more or fewer texts than
    images. Only the student gets a gradient.
    Returns this rank's share (see the head of this file), fp32 also under autocast; 0 if no rank has an image.
    """
    with torch.autocast(student_BE.device.type, enabled=False):
        text_TE, _ = _gathered(_exact(text_BE.detach()), _counts(text_BE, group), group)
        sharp_TE = _exact(log_scale.detach()).exp() / temperature * text_TE
        student_BT = F.log_softmax(_exact(student_BE) @ sharp_TE.T, dim=1)
        teacher_BT = F.log_softmax(_exact(teacher_BE.detach()) @ sharp_TE.T, dim=1)
        return _share((teacher_BT.exp() * (teacher_BT - student_BT)).sum(), _counts(student_BE, group))


def _pairs(scaled_BE: Tensor, text_CE: Tensor, bias: Tensor, own_B: Tensor, label_C: Tensor) -> Tensor:
    """The sum over B samples and C texts; a text whose label is ``own_B`` of a sample is the sample's."""
    logits_BC = scaled_BE @ text_CE.T + bias
    return -F.logsigmoid(torch.where(own_B[:, None] == label_C, logits_BC, -logits_BC)).sum()


def _exact(x: Tensor) -> Tensor:
    """At least fp32."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _share(total: Tensor, counts: list[int]) -> Tensor:
    """The share that this rank returns: ``total`` of its rows over the mean number of rows of a rank."""
    return total * (len(counts) / max(sum(counts), 1))


def _counts(rows: Tensor, group: dist.ProcessGroup | None) -> list[int]:
    """Number of rows of each rank."""
    if not dist.is_initialized():
        return [len(rows)]
    counts = torch.zeros(dist.get_world_size(group), dtype=torch.int64, device=rows.device)
    counts[dist.get_rank(group)] = len(rows)
    dist.all_reduce(counts, group=group)
    return counts.tolist()


def _gathered(rows: Tensor, counts: list[int], group: dist.ProcessGroup | None) -> tuple[Tensor, int]:
    """The rows of all ranks, rank after rank, and the index of this rank's first one."""
    if not dist.is_initialized():
        return rows, 0
    # All texts at once rather than round a ring: 32,768 texts of width 1152 are 0.15 GB, and the logits, which grow
    # faster, come in chunks. Each rank pads its rows with zeros to the whole length and all ranks are summed (exact),
    # so ranks may have different numbers of rows, and the backward pass, which adds the gradients of all ranks, is the
    # same sum.
    rank = dist.get_rank(group)
    before, after = sum(counts[:rank]), sum(counts[rank + 1 :])
    return _Sum.apply(F.pad(rows, (0, 0, before, after)), group), before


class _Sum(torch.autograd.Function):
    """The sum over ranks, on every rank; so is its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup | None) -> Tensor:
        ctx.group = group
        whole = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(whole, group=group)
        return whole

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _Sum.apply(gradients[0], ctx.group), None
