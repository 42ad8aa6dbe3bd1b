"""Attention over packed samples: every path equals the plain twin, forward and gradient."""

import pytest
import torch

from atoken import attention
from tests.tolerances import BF16_FORWARD, BF16_GRADIENT, FP32

HEAD_WIDTHS = [16, 48, 72]  # 72 is so400m's, not a power of two
LENGTHS = [(7,), (5, 5, 5), (3, 0, 9, 9, 1), (0, 4)]
PATHS = {
    "chosen": attention.varlen_attention,
    "sdpa_by_sample": lambda q, k, v, b, kb=None: attention.sdpa_by_sample(q, k, v, b, b if kb is None else kb),
}


def masked_attention(q_NHK, k_NHK, v_NHK, bounds, kv_bounds):
    """The plain twin that defines the result: every logit, a block-diagonal mask, a softmax."""
    q_sample, k_sample = (
        torch.arange(len(b) - 1).repeat_interleave(torch.tensor(b).diff()) for b in (bounds, kv_bounds)
    )
    logits = torch.einsum("qhk,nhk->hqn", q_NHK, k_NHK) * q_NHK.shape[-1] ** -0.5
    logits = logits.masked_fill(q_sample[:, None] != k_sample, float("-inf"))
    return torch.einsum("hqn,nhk->qhk", logits.softmax(-1).nan_to_num(), v_NHK)


def bounds(lengths):
    return (0, *torch.tensor(lengths).cumsum(0).tolist())


def inputs(q_lengths, kv_lengths, head_width, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    shapes = [(sum(q_lengths), 2, head_width), *[(sum(kv_lengths), 2, head_width)] * 2]
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("head_width", HEAD_WIDTHS)
@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("extra_keys", [0, 2])
def test_equals_the_plain_twin_forward_and_gradient(path, head_width, lengths, extra_keys):
    kv_lengths = tuple(n + extra_keys if n else 0 for n in lengths)
    results = []
    for function in (PATHS[path], masked_attention):
        q, k, v = inputs(lengths, kv_lengths, head_width)
        out = function(q, k, v, bounds(lengths), bounds(kv_lengths))
        out.square().sum().backward()
        results.append([out, q.grad, k.grad, v.grad])
    for found, twin in zip(*results, strict=True):
        torch.testing.assert_close(found, twin, atol=FP32, rtol=FP32)


def test_bf16_stays_near_fp32():
    lengths, grads = (64, 40, 200), []  # on a CPU long ones are trained by plain products
    for dtype in (torch.bfloat16, torch.float32):
        q, k, v = inputs(lengths, lengths, 72, dtype)
        out = attention.varlen_attention(q, k, v, bounds(lengths))
        out.float().sum().backward()
        grads.append([out.float(), v.grad.float()])
    (out, grad), (exact, exact_grad) = grads
    assert (out - exact).norm() / exact.norm() <= BF16_FORWARD
    assert (grad - exact_grad).norm() / exact_grad.norm() <= BF16_GRADIENT


@pytest.mark.parametrize("head_width", HEAD_WIDTHS)
def test_long_samples_in_bf16_keep_fp32_logits(head_width, monkeypatch):
    """On a CPU without gradients they take oneDNN's products; the error must be that of torch's kernel, not more."""
    lengths, kv_lengths, taken = (700, 3, 520), (705, 3, 520), []
    plain = attention._onednn
    monkeypatch.setattr(attention, "_onednn", lambda *given: taken.append(given[0].shape[2]) or plain(*given))
    inside = bounds(lengths), bounds(kv_lengths)
    q, k, v = (x.detach() for x in inputs(lengths, kv_lengths, head_width, torch.bfloat16))
    q = q * 4  # logits of up to 20, of which bf16 would lose a tenth
    exact = masked_attention(q.float(), k.float(), v.float(), *inside)

    def error(found):
        return ((found.float() - exact).norm() / exact.norm()).item()

    with torch.no_grad():
        fast = error(attention.varlen_attention(q, k, v, *inside))
        expected = [length for length in lengths if length > 512] if attention.takes_onednn(q) else []
    assert taken == expected
    slow = error(attention.varlen_attention(q.requires_grad_(), k, v, *inside))
    assert taken == expected
    assert fast <= min(1.5 * slow, BF16_FORWARD)


def test_a_sample_does_not_see_its_batch_mates():
    q, k, v = inputs((6, 4), (6, 4), 48)
    together = attention.varlen_attention(q, k, v, (0, 6, 10))
    alone = attention.varlen_attention(q[:6], k[:6], v[:6], (0, 6))
    torch.testing.assert_close(together[:6], alone, atol=FP32, rtol=0)


def test_soft_cap_against_its_closed_form_and_its_limit():
    q, k, v = inputs((5, 3), (5, 3), 48)
    q = q * 20  # large enough for the cap to bite
    capped = attention.varlen_attention(q, k, v, (0, 5, 8), softcap=30.0)
    logits = torch.einsum("qhk,nhk->hqn", q[:5], k[:5]) / 48**0.5
    expected = torch.einsum("hqn,nhk->qhk", (30 * torch.tanh(logits / 30)).softmax(-1), v[:5])
    torch.testing.assert_close(capped[:5], expected, atol=FP32, rtol=FP32)
    plain = attention.varlen_attention(q / 20, k, v, (0, 5, 8))
    nearly = attention.varlen_attention(q / 20, k, v, (0, 5, 8), softcap=1e4)
    torch.testing.assert_close(nearly, plain, atol=FP32, rtol=FP32)


@pytest.mark.parametrize("softcap", [None, 30.0])
def test_rows_of_a_sample_without_keys_are_zero_and_do_not_disturb_the_others(softcap):
    q, k, v = inputs((3, 2, 0, 4), (5, 0, 2, 6), 16)
    out = attention.varlen_attention(q, k, v, (0, 3, 5, 5, 9), (0, 5, 5, 7, 13), softcap=softcap)
    assert not out[3:5].any()
    for rows, keys in ((slice(0, 3), slice(0, 5)), (slice(5, 9), slice(7, 13))):
        bounds = (0, rows.stop - rows.start), (0, keys.stop - keys.start)
        alone = attention.varlen_attention(q[rows], k[keys], v[keys], *bounds, softcap=softcap)
        torch.testing.assert_close(out[rows], alone, atol=FP32, rtol=FP32)
    out.sum().backward()
    assert all(x.grad.isfinite().all() for x in (q, k, v))


def test_soft_capped_logits_are_held_in_batches_of_a_bounded_size(monkeypatch):
    """Keys of each query length rise and fall, so that the longest of a batch need not be its last."""
    monkeypatch.setattr(attention, "CAPPED_LOGITS", 4_000)
    rng, sizes = torch.Generator().manual_seed(0), []
    lengths, kv_lengths = (torch.randint(1, 30, (60,), generator=rng).tolist() for _ in range(2))
    batch = attention._capped_batch

    def measured(q, k, v, index_BL, kv_index_BL, *rest):
        sizes.append((len(index_BL), index_BL.numel() * kv_index_BL.shape[1] * q.shape[1]))
        return batch(q, k, v, index_BL, kv_index_BL, *rest)

    monkeypatch.setattr(attention, "_capped_batch", measured)
    q, k, v = (x.detach() for x in inputs(lengths, kv_lengths, 16))
    out = attention.varlen_attention(q, k, v, bounds(lengths), bounds(kv_lengths), softcap=30.0)
    assert all(logits <= 4_000 for samples, logits in sizes if samples > 1)
    assert sum(samples for samples, _ in sizes) == 60
    assert len(sizes) < 60
    monkeypatch.setattr(attention, "CAPPED_LOGITS", 2**23)
    together = attention.varlen_attention(q, k, v, bounds(lengths), bounds(kv_lengths), softcap=30.0)
    torch.testing.assert_close(out, together, atol=FP32, rtol=FP32)


def test_soft_capped_attention_is_fp32_under_autocast_too():
    q, k, v = (x.detach() for x in inputs((5, 3), (5, 3), 48))
    expected = attention.varlen_attention(q, k, v, (0, 5, 8), softcap=30.0)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(attention.varlen_attention(q, k, v, (0, 5, 8), softcap=30.0), expected)


def test_kernels_are_told_the_longest_sample(monkeypatch):
    told = []
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", lambda *given: told.append(given) or given[0])
    attention.torch_varlen(*inputs((3, 7, 2), (4, 1, 9), 16), (0, 3, 10, 12), (0, 4, 5, 14))
    assert [x.tolist() for x in told[0][3:5]] == [[0, 3, 10, 12], [0, 4, 5, 14]]
    assert told[0][5:] == (7, 9)


def test_the_path_is_chosen_by_device_and_dtype():
    assert attention.backend("cpu", torch.bfloat16) is attention.sdpa_by_sample
    assert attention.backend("cuda", torch.float32) is attention.sdpa_by_sample
    assert attention.backend("cuda", torch.bfloat16) is not attention.sdpa_by_sample


def test_bounds_that_inference_asked_for_first_serve_training_too():
    with torch.inference_mode():
        attention._on_device((0, 11, 13), torch.device("cpu"))
    assert not attention._on_device((0, 11, 13), torch.device("cpu")).is_inference()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="the variable-length kernels need a GPU")
@pytest.mark.parametrize("head_width", HEAD_WIDTHS)
def test_variable_length_kernel_equals_sdpa(head_width):
    lengths = (128, 7, 300)
    q, k, v = (x.detach().cuda() for x in inputs(lengths, lengths, head_width, torch.bfloat16))
    found = attention.varlen_attention(q, k, v, bounds(lengths))
    twin = attention.sdpa_by_sample(q, k, v, bounds(lengths), bounds(lengths))
    assert (found.float() - twin.float()).norm() / twin.float().norm() <= BF16_FORWARD
