"""Attention over packed samples of any length: one function, which chooses the path for the device.

Shape letters: see ``atoken/tokens.py``; ``L`` is the length of one sample.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Iterator
from itertools import groupby, pairwise, product

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the usual name
from torch.utils.checkpoint import checkpoint

from atoken.onednn import onednn_product, takes_onednn

Bounds = tuple[int, ...]
Span = tuple[int, int]
Backend = Callable[[Tensor, Tensor, Tensor, Bounds, Bounds], Tensor]
ONEDNN_LEAST, ONEDNN_ROWS = 512, 512  # queries from which ``_onednn`` is faster; and those it takes at a time
PLAIN_LEAST, PLAIN_LOGITS = 128, 2**25  # queries from which, and logits up to which, plain products are trained in bf16
CAPPED_LOGITS = 2**23  # soft-capped logits held at a time (32 MB), unless a single sample has more


def varlen_attention(
    q_NHK: Tensor,
    k_NHK: Tensor,
    v_NHK: Tensor,
    bounds: Bounds | int,
    kv_bounds: Bounds | int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Full attention inside each sample of a packed batch, none between samples.

    bounds: where samples begin and end in the queries, (0, n1, n1 + n2, ..., N), on the host; or the length of every
    sample, then without soft cap. kv_bounds: the same for keys and values if it differs. softcap: logits become
    ``softcap * tanh(logits / softcap)``.
    Returns (N, H, K); rows of a sample without keys are zero.
    """
    kv_bounds = bounds if kv_bounds is None else kv_bounds
    if isinstance(bounds, int) or isinstance(kv_bounds, int):
        q_BHLK, k_BHLK, v_BHLK = (
            x.unflatten(0, (-1, length)).transpose(1, 2)
            for x, length in ((q_NHK, bounds), (k_NHK, kv_bounds), (v_NHK, kv_bounds))
        )
        return F.scaled_dot_product_attention(q_BHLK, k_BHLK, v_BHLK).transpose(1, 2).flatten(0, 1)
    chosen = backend(q_NHK.device.type, q_NHK.dtype)
    if softcap is None or q_NHK.device.type == "meta":  # which has no logits to cap
        return chosen(q_NHK, k_NHK, v_NHK, bounds, kv_bounds)
    capped = flash_attn_package if chosen is flash_attn_package else softcapped
    return capped(q_NHK, k_NHK, v_NHK, bounds, kv_bounds, softcap)


@functools.cache
def backend(device: str, dtype: torch.dtype) -> Backend:
    """The path for a device type and dtype: a variable-length flash kernel on CUDA, else SDPA by sample.

    The meta device, on which costs are counted, has that of CUDA.
    """
    if device == "meta":
        return torch_varlen
    if device == "cuda" and dtype in (torch.bfloat16, torch.float16):
        return flash_attn_package if importlib.util.find_spec("flash_attn") else torch_varlen
    return sdpa_by_sample


def sdpa_by_sample(q_NHK: Tensor, k_NHK: Tensor, v_NHK: Tensor, bounds: Bounds, kv_bounds: Bounds) -> Tensor:
    """Scaled-dot-product attention sample by sample; adjacent samples of one shape share a call."""
    runs = _runs(bounds, kv_bounds)
    # Split, not sliced: the gradient of each slice is as large as the batch, that of a split is one concatenation.
    queries = q_NHK.split([samples * length for samples, length, _ in runs])
    keys, values = (x.split([samples * length for samples, _, length in runs]) for x in (k_NHK, v_NHK))
    parts = []
    for (samples, length, _), *parts_of in zip(runs, queries, keys, values, strict=True):
        if length:
            q_BHLK, k_BHLK, v_BHLK = (x.unflatten(0, (samples, -1)).transpose(1, 2) for x in parts_of)
            slow = q_BHLK.dtype == torch.bfloat16 and q_BHLK.device.type == "cpu"
            attend = _cpu_bf16 if slow else F.scaled_dot_product_attention
            parts.append(attend(q_BHLK, k_BHLK, v_BHLK).transpose(1, 2).flatten(0, 1))
    if not parts:
        return torch.zeros_like(q_NHK)
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _cpu_bf16(q_BHLK: Tensor, k_BHLK: Tensor, v_BHLK: Tensor) -> Tensor:
    """SDPA in bf16 on a CPU, by other ways than torch's kernel where that is slow.

    Its gradients take twenty times as long as in fp32 for samples of 20 to 80 tokens, and five times as long as those
    of plain products for long ones.
    """
    length = q_BHLK.shape[2]
    if not torch.is_grad_enabled():
        attend = _onednn if length >= ONEDNN_LEAST and takes_onednn(q_BHLK) else F.scaled_dot_product_attention
        return attend(q_BHLK, k_BHLK, v_BHLK)
    logits = q_BHLK.shape[:3].numel() * k_BHLK.shape[2]
    with torch.autocast("cpu", enabled=False):
        if length >= PLAIN_LEAST and logits <= PLAIN_LOGITS:
            return (q_BHLK * q_BHLK.shape[-1] ** -0.5 @ k_BHLK.mT).softmax(-1) @ v_BHLK
        return F.scaled_dot_product_attention(q_BHLK.float(), k_BHLK.float(), v_BHLK.float()).to(v_BHLK.dtype)


def _onednn(q_BHLK: Tensor, k_BHLK: Tensor, v_BHLK: Tensor) -> Tensor:
    """SDPA in bf16 on a CPU, head by head: oneDNN's products take half the time of torch's kernel for long samples.

    Logits and softmax are fp32, as in torch's kernel; at most ``ONEDNN_ROWS`` rows of logits at a time.
    """
    samples, heads, length, width = q_BHLK.shape
    out_BLHK = torch.empty_like(q_BHLK.transpose(1, 2), memory_format=torch.contiguous_format)
    for sample, head in product(range(samples), range(heads)):
        # Contiguous: oneDNN's product of two strided matrices is a thousand times slower.
        q_LK, k_LK = (x_BHLK[sample, head].float().contiguous() for x_BHLK in (q_BHLK, k_BHLK))
        pieces = -(-length // ONEDNN_ROWS)
        for rows, out_LK in zip(q_LK.chunk(pieces), out_BLHK[sample, :, head].chunk(pieces), strict=True):
            logits_LL = onednn_product(rows * width**-0.5, k_LK)
            out_LK.copy_(logits_LL.softmax(-1).to(v_BHLK.dtype) @ v_BHLK[sample, head])
    return out_BLHK.transpose(1, 2)


def _runs(bounds: Bounds, kv_bounds: Bounds) -> list[tuple[int, int, int]]:
    """Runs of adjacent samples of equal lengths: samples, queries of each, keys of each."""
    lengths = zip(map(_length, pairwise(bounds)), map(_length, pairwise(kv_bounds)), strict=True)
    return [(len(list(run)), *shape) for shape, run in groupby(lengths)]


def softcapped(
    q_NHK: Tensor, k_NHK: Tensor, v_NHK: Tensor, bounds: Bounds, kv_bounds: Bounds, softcap: float
) -> Tensor:
    """Attention with soft-capped logits, explicit and in fp32 (SDPA has no soft cap); samples are padded into batches.

    Memory is bounded in training, too: the logits of a batch are recomputed for the gradient.
    """
    rows, parts = [], []
    for queries, keys in _padded_batches(bounds, kv_bounds, q_NHK.shape[1]):
        index_BL, inside_BL = _padding(queries, q_NHK.device)
        inputs = q_NHK, k_NHK, v_NHK, index_BL, *_padding(keys, q_NHK.device), softcap
        attended = checkpoint(_capped_batch, *inputs, use_reentrant=False, preserve_rng_state=False)
        real = inside_BL.flatten().nonzero()[:, 0]
        rows.append(index_BL.flatten()[real])
        parts.append(attended.index_select(0, real))
    out_NHK = torch.zeros_like(q_NHK)
    return out_NHK.index_copy(0, torch.cat(rows), torch.cat(parts)) if parts else out_NHK


def _padded_batches(bounds: Bounds, kv_bounds: Bounds, heads: int) -> Iterator[tuple[list[Span], list[Span]]]:
    """Query spans and key spans of samples that have both, sorted by length, ``CAPPED_LOGITS`` a batch."""
    spans = [(q, k) for q, k in zip(pairwise(bounds), pairwise(kv_bounds), strict=True) if _length(q) and _length(k)]
    spans.sort(key=lambda span: (_length(span[0]), _length(span[1])))
    first, longest_key = 0, 0
    for last, (query, key) in enumerate(spans):
        longest_key = max(longest_key, _length(key))
        if first < last and (last + 1 - first) * _length(query) * longest_key * heads > CAPPED_LOGITS:
            yield [q for q, _ in spans[first:last]], [k for _, k in spans[first:last]]
            first, longest_key = last, _length(key)
    if spans:
        yield [q for q, _ in spans[first:]], [k for _, k in spans[first:]]


def _length(span: Span) -> int:
    return span[1] - span[0]


def _padding(spans: list[Span], device: torch.device) -> tuple[Tensor, Tensor]:
    """Indices (B, L) of spans, padded with their last entry, and which of them are inside."""
    start_B, end_B = torch.tensor(spans, device=device).unbind(1)
    index_BL = start_B[:, None] + torch.arange(max(map(_length, spans)), device=device)
    return index_BL.clamp(max=end_B[:, None] - 1), index_BL < end_B[:, None]


def _capped_batch(
    q_NHK: Tensor,
    k_NHK: Tensor,
    v_NHK: Tensor,
    index_BL: Tensor,
    kv_index_BL: Tensor,
    kv_inside_BL: Tensor,
    softcap: float,
) -> Tensor:
    """One padded batch: (B * L, H, K)."""
    q_BHLK, k_BHLK, v_BHLK = (
        x.index_select(0, index.flatten()).unflatten(0, index.shape).transpose(1, 2)
        for x, index in ((q_NHK, index_BL), (k_NHK, kv_index_BL), (v_NHK, kv_index_BL))
    )
    with torch.autocast(q_NHK.device.type, enabled=False):
        logits = q_BHLK.float() @ k_BHLK.float().mT * q_BHLK.shape[-1] ** -0.5
        logits = softcap * torch.tanh(logits / softcap)
        weights = logits.masked_fill(~kv_inside_BL[:, None, None], float("-inf")).softmax(-1)
        return (weights.to(v_BHLK.dtype) @ v_BHLK).transpose(1, 2).flatten(0, 1)


def torch_varlen(q_NHK: Tensor, k_NHK: Tensor, v_NHK: Tensor, bounds: Bounds, kv_bounds: Bounds) -> Tensor:
    """The variable-length flash kernel that comes with torch (CUDA, half precision)."""
    from torch.nn.attention.varlen import varlen_attn

    offsets, kv_offsets = _on_device(bounds, q_NHK.device), _on_device(kv_bounds, q_NHK.device)
    out = varlen_attn(q_NHK, k_NHK, v_NHK, offsets, kv_offsets, _longest(bounds), _longest(kv_bounds))
    assert isinstance(out, Tensor)  # it is a tuple only if auxiliary results are requested
    return out


def flash_attn_package(
    q_NHK: Tensor, k_NHK: Tensor, v_NHK: Tensor, bounds: Bounds, kv_bounds: Bounds, softcap: float = 0.0
) -> Tensor:
    """The variable-length kernel of the package ``flash_attn`` (CUDA, half precision); softcap 0 is none."""
    from flash_attn import flash_attn_varlen_func

    offsets, kv_offsets = _on_device(bounds, q_NHK.device), _on_device(kv_bounds, q_NHK.device)
    longest = _longest(bounds), _longest(kv_bounds)
    return flash_attn_varlen_func(q_NHK, k_NHK, v_NHK, offsets, kv_offsets, *longest, softcap=softcap)


@functools.lru_cache(maxsize=64)
def _on_device(bounds: Bounds, device: torch.device) -> Tensor:
    """Bounds as an int32 tensor; cached, because every block of a forward pass needs the same one."""
    place = "cpu" if device.type == "meta" else device  # FlopCounterMode reads the lengths
    with torch.inference_mode(False):  # a later training step could not use a tensor of inference mode
        return torch.tensor(bounds, dtype=torch.int32, device=place)


def _longest(bounds: Bounds) -> int:
    return max(map(_length, pairwise(bounds)), default=0)
