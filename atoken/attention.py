"""Attention over packed samples of any length: one function, and behind it one path per device, chosen here.

Shape letters: see ``atoken/tokens.py``; ``L`` is the length of one sample.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Iterator
from itertools import groupby, pairwise

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the usual name

Bounds = tuple[int, ...]
Backend = Callable[[Tensor, Tensor, Tensor, Bounds, Bounds], Tensor]


def varlen_attention(
    q_NHK: Tensor,
    k_NHK: Tensor,
    v_NHK: Tensor,
    bounds: Bounds,
    kv_bounds: Bounds | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Full attention inside each sample of a packed batch, none between samples.

    bounds: where samples begin and end in the queries, (0, n1, n1 + n2, ..., N), on the host; kv_bounds: the same for
    keys and values where they differ. softcap: logits become ``softcap * tanh(logits / softcap)``.
    Returns (N, H, K); rows of a sample without keys are zero.
    """
    kv_bounds = bounds if kv_bounds is None else kv_bounds
    if softcap is not None:
        return softcapped(q_NHK, k_NHK, v_NHK, bounds, kv_bounds, softcap)
    return backend(q_NHK.device.type, q_NHK.dtype)(q_NHK, k_NHK, v_NHK, bounds, kv_bounds)


@functools.cache
def backend(device: str, dtype: torch.dtype) -> Backend:
    """The attention path for a device type and dtype: a variable-length flash kernel on CUDA, else SDPA by sample."""
    if device == "cuda" and dtype in (torch.bfloat16, torch.float16):
        return flash_attn_package if importlib.util.find_spec("flash_attn") else torch_varlen
    return sdpa_by_sample


def sdpa_by_sample(q_NHK: Tensor, k_NHK: Tensor, v_NHK: Tensor, bounds: Bounds, kv_bounds: Bounds) -> Tensor:
    """Scaled-dot-product attention sample by sample; neighbours of one shape share a call."""
    parts = []
    for samples, queries, keys in _runs(bounds, kv_bounds):
        q_BHLK, k_BHLK, v_BHLK = (
            x[span[0] : span[1]].unflatten(0, (samples, -1)).transpose(1, 2)
            for x, span in ((q_NHK, queries), (k_NHK, keys), (v_NHK, keys))
        )
        parts.append(F.scaled_dot_product_attention(q_BHLK, k_BHLK, v_BHLK).transpose(1, 2).flatten(0, 1))
    return _join(parts, q_NHK)


def _runs(bounds: Bounds, kv_bounds: Bounds) -> Iterator[tuple[int, tuple[int, int], tuple[int, int]]]:
    """Neighbouring samples of equal lengths as (samples, query span, key span); samples without queries left out."""
    spans = [(q, k) for q, k in zip(pairwise(bounds), pairwise(kv_bounds), strict=True) if q[0] < q[1]]
    for _, run in groupby(spans, key=lambda span: (span[0][1] - span[0][0], span[1][1] - span[1][0])):
        members = list(run)
        (first_q, first_k), (last_q, last_k) = members[0], members[-1]
        adjacent = last_q[1] - first_q[0] == len(members) * (first_q[1] - first_q[0])
        adjacent &= last_k[1] - first_k[0] == len(members) * (first_k[1] - first_k[0])
        if adjacent:
            yield len(members), (first_q[0], last_q[1]), (first_k[0], last_k[1])
        else:
            yield from ((1, q, k) for q, k in members)


def _join(parts: list[Tensor], q_NHK: Tensor) -> Tensor:
    if not parts:
        return torch.zeros_like(q_NHK)
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def softcapped(
    q_NHK: Tensor, k_NHK: Tensor, v_NHK: Tensor, bounds: Bounds, kv_bounds: Bounds, softcap: float
) -> Tensor:
    """Attention with soft-capped logits, written out sample by sample (SDPA has no soft-cap)."""
    parts = []
    for queries, keys in zip(pairwise(bounds), pairwise(kv_bounds), strict=True):
        q_HLK, k_HLK, v_HLK = (
            x[slice(*s)].transpose(0, 1) for x, s in ((q_NHK, queries), (k_NHK, keys), (v_NHK, keys))
        )
        logits = q_HLK @ k_HLK.transpose(1, 2) * q_HLK.shape[-1] ** -0.5
        weights = (softcap * torch.tanh(logits / softcap)).float().softmax(-1).to(v_HLK.dtype)
        parts.append((weights @ v_HLK).transpose(0, 1))
    return _join(parts, q_NHK)


def torch_varlen(q_NHK: Tensor, k_NHK: Tensor, v_NHK: Tensor, bounds: Bounds, kv_bounds: Bounds) -> Tensor:
    """The variable-length flash kernel that comes with torch (CUDA, half precision)."""
    from torch.nn.attention.varlen import varlen_attn

    offsets, kv_offsets = _on_device(bounds, q_NHK.device), _on_device(kv_bounds, q_NHK.device)
    out = varlen_attn(q_NHK, k_NHK, v_NHK, offsets, kv_offsets, _longest(bounds), _longest(kv_bounds))
    assert isinstance(out, Tensor)  # a tuple only where auxiliary results are asked for
    return out


def flash_attn_package(q_NHK: Tensor, k_NHK: Tensor, v_NHK: Tensor, bounds: Bounds, kv_bounds: Bounds) -> Tensor:
    """The variable-length kernel of the package ``flash_attn``, where that is installed (CUDA, half precision)."""
    from flash_attn import flash_attn_varlen_func

    offsets, kv_offsets = _on_device(bounds, q_NHK.device), _on_device(kv_bounds, q_NHK.device)
    return flash_attn_varlen_func(q_NHK, k_NHK, v_NHK, offsets, kv_offsets, _longest(bounds), _longest(kv_bounds))


@functools.lru_cache(maxsize=64)
def _on_device(bounds: Bounds, device: torch.device) -> Tensor:
    """Bounds as an int32 tensor; kept, since every block of a forward pass asks for the same one."""
    return torch.tensor(bounds, dtype=torch.int32, device=device)


def _longest(bounds: Bounds) -> int:
    return max((end - start for start, end in pairwise(bounds)), default=0)


def masked_attention(
    q_NHK: Tensor, k_NHK: Tensor, v_NHK: Tensor, bounds: Bounds, kv_bounds: Bounds | None = None
) -> Tensor:
    """The plain twin that defines the result: every logit, a block-diagonal mask, a softmax. For tests."""
    kv_bounds = bounds if kv_bounds is None else kv_bounds
    q_sample, k_sample = (
        torch.repeat_interleave(torch.arange(len(b) - 1), torch.tensor(b).diff()).to(q_NHK.device)
        for b in (bounds, kv_bounds)
    )
    logits = torch.einsum("qhk,nhk->hqn", q_NHK, k_NHK) * q_NHK.shape[-1] ** -0.5
    logits = logits.masked_fill(q_sample[:, None] != k_sample, float("-inf"))
    return torch.einsum("hqn,nhk->qhk", logits.softmax(-1).nan_to_num(), v_NHK)
