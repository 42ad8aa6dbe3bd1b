"""Alignment losses: closed forms, plain twins of the full matrix, and the same over ranks of spawned processes."""

import math
import multiprocessing
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F  # noqa: N812 - the usual name

from atoken.pretrain.alignment import distillation, sigmoid_loss
from tests.tolerances import EXACT, FP32, RANKS

B, E = 23, 16
LOG_SCALE, BIAS = 4.8438, -15.5625  # SigLIP2's, where rounding hurts most
WORLDS = [1, 2, 3, 4]


def units(count, seed, near=None):
    """Unit vectors, a little ``near`` others where asked."""
    noise = F.normalize(torch.randn(count, E, generator=torch.Generator().manual_seed(seed)), dim=1)
    return noise if near is None else F.normalize(0.3 * near + noise, dim=1)


TEXT = units(B, 0)
VISUAL, TEACHER = units(B, 1, TEXT), units(B, 2, TEXT)
LABELS = torch.arange(B) % 5


def leaves(*values, dtype=torch.float32):
    return [torch.as_tensor(value, dtype=dtype).clone().requires_grad_() for value in values]


def sigmoid_twin(visual, text, log_scale, bias):
    """The full matrix, every logarithm and sigmoid written out."""
    signs = 2 * torch.eye(len(visual), dtype=visual.dtype) - 1
    return -torch.log(torch.sigmoid(signs * (log_scale.exp() * visual @ text.T + bias))).sum() / len(visual)


def distillation_twin(student, teacher, text, log_scale, temperature=2.0, bias=0.0):
    prediction, target = (
        ((log_scale.exp() * visual @ text.T + bias) / temperature).softmax(1) for visual in (student, teacher)
    )
    return F.kl_div(prediction.log(), target, reduction="batchmean")


def gradients(loss, leaves):
    """The loss and its gradients, detached."""
    return [loss.detach(), *torch.autograd.grad(loss, leaves)]


def assert_near(found, expected, tolerance):
    """Apart by ``tolerance`` of the largest absolute value of each tensor at most."""
    for one, plain in zip(found, expected, strict=True):
        torch.testing.assert_close(one.double(), plain.double(), rtol=0, atol=tolerance * float(plain.abs().max()))


def truth(visual=VISUAL, text=TEXT, log_scale=LOG_SCALE, bias=BIAS):
    """Loss and gradients of the twin in fp64."""
    inputs = leaves(visual, text, log_scale, bias, dtype=torch.float64)
    return gradients(sigmoid_twin(*inputs), inputs)


# One process


def test_sigmoid_loss_of_one_and_two_samples_in_closed_form():
    log_scale, bias = torch.tensor([math.log(3.0), -0.5], dtype=torch.float64)
    axes = torch.eye(2, dtype=torch.float64)
    own, other = math.log1p(math.exp(-2.5)), math.log1p(math.exp(-0.5))
    assert sigmoid_loss(axes[:1], axes[:1], log_scale, bias).item() == pytest.approx(own, rel=1e-12)
    assert sigmoid_loss(axes, axes, log_scale, bias).item() == pytest.approx(own + other, rel=1e-12)
    same = axes[[0, 0]]  # each text is the other's, too, and a negative all the same
    assert sigmoid_loss(same, same, log_scale, bias).item() == pytest.approx(2 * own + 2.5, rel=1e-12)


def test_samples_with_one_label_match_the_texts_of_each_other():
    log_scale, bias = torch.tensor([math.log(3.0), -0.5], dtype=torch.float64)
    axes, labels = torch.eye(3, dtype=torch.float64), torch.tensor([7, 7, 8])
    own, other, mate = math.log1p(math.exp(-2.5)), math.log1p(math.exp(-0.5)), math.log1p(math.exp(0.5))
    loss = sigmoid_loss(axes, axes, log_scale, bias, labels_B=labels, chunk=2)
    assert loss.item() == pytest.approx((3 * own + 4 * other + 2 * mate) / 3, rel=1e-12)


def test_labels_that_all_differ_change_nothing():
    inputs, labels = leaves(VISUAL, TEXT, LOG_SCALE, BIAS), torch.arange(B).flip(0)
    captioned = torch.arange(B) % 3 > 0
    plain = gradients(sigmoid_loss(*inputs, captioned_B=captioned), inputs)
    assert_near(gradients(sigmoid_loss(*inputs, captioned_B=captioned, labels_B=labels), inputs), plain, EXACT)


@pytest.mark.parametrize("chunk", [1, 7, B, 4096])
@pytest.mark.parametrize(("log_scale", "bias"), [(LOG_SCALE, BIAS), (2.3, -10.0), (0.0, 0.0)])
def test_sigmoid_loss_and_its_gradients_are_those_of_the_full_matrix(chunk, log_scale, bias):
    inputs = leaves(VISUAL, TEXT, log_scale, bias)
    found = gradients(sigmoid_loss(*inputs, chunk=chunk), inputs)
    assert_near(found, truth(log_scale=log_scale, bias=bias), RANKS)


def test_gradients_are_those_of_finite_differences():
    inputs = leaves(VISUAL[:5], TEXT[:5], 1.0, -1.0, dtype=torch.float64)
    captioned = torch.tensor([True, True, False, True, True])
    assert torch.autograd.gradcheck(lambda *x: sigmoid_loss(*x, captioned_B=captioned, chunk=3), inputs)
    (student,) = leaves(VISUAL[:5], dtype=torch.float64)
    fixed = TEACHER[:5].double(), TEXT[:7].double(), torch.tensor(2.0).double()
    assert torch.autograd.gradcheck(lambda x: distillation(x, *fixed), [student])


def test_a_sample_without_a_text_is_as_good_as_absent():
    captioned = torch.arange(B) % 3 > 0
    inputs = leaves(VISUAL, TEXT.where(captioned[:, None], torch.nan), LOG_SCALE, BIAS)
    loss, *found = gradients(sigmoid_loss(*inputs, captioned_B=captioned), inputs)
    assert not any(gradient[~captioned].any() for gradient in found[:2])
    found[:2] = (gradient[captioned] for gradient in found[:2])
    assert_near([loss, *found], truth(VISUAL[captioned], TEXT[captioned]), RANKS)


def test_without_any_text_the_loss_is_zero_and_every_gradient_there():
    inputs = leaves(VISUAL, TEXT, LOG_SCALE, BIAS)
    results = gradients(sigmoid_loss(*inputs, captioned_B=torch.zeros(B, dtype=torch.bool)), inputs)
    (student,) = leaves(VISUAL)
    results += gradients(distillation(student, TEACHER, TEXT[:0], torch.tensor(LOG_SCALE)), [student])
    (nobody,) = leaves(VISUAL[:0])
    results += gradients(distillation(nobody, TEACHER[:0], TEXT, torch.tensor(LOG_SCALE)), [nobody])
    assert not any(result.any() for result in results)


def test_samples_and_texts_must_be_as_many():
    with pytest.raises(ValueError, match="23 samples and 22 texts"):
        sigmoid_loss(VISUAL, TEXT[1:], torch.tensor(0.0), torch.tensor(0.0))


def test_autocast_changes_nothing():
    inputs, (student,) = leaves(VISUAL, TEXT, LOG_SCALE, BIAS), leaves(VISUAL)
    fixed = TEACHER, TEXT, torch.tensor(LOG_SCALE)
    plain = gradients(sigmoid_loss(*inputs, chunk=7), inputs) + gradients(distillation(student, *fixed), [student])
    with torch.autocast("cpu", torch.bfloat16):
        assert (VISUAL @ TEXT.T).dtype == torch.bfloat16
        loss, distilled = sigmoid_loss(*inputs, chunk=7), distillation(student, *fixed)
    under = gradients(loss, inputs) + gradients(distilled, [student])
    assert_near(under, plain, EXACT)
    halves = [x.bfloat16() for x in inputs]
    torch.testing.assert_close(sigmoid_loss(*halves), sigmoid_loss(*(x.float() for x in halves)), rtol=0, atol=EXACT)


def test_no_logits_are_kept_for_the_gradient():
    kept = []
    inputs = leaves(VISUAL[:, :2], TEXT[:, :2], LOG_SCALE, BIAS)
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        loss = sigmoid_loss(*inputs, chunk=8)
    assert 0 < sum(kept) < B * B
    loss.backward()


@pytest.mark.parametrize(("log_scale", "temperature"), [(LOG_SCALE, 2.0), (1.0, 0.5)])
def test_distillation_is_the_divergence_written_out(log_scale, temperature):
    (student,) = leaves(VISUAL)
    loss = distillation(student, TEACHER, TEXT[:9], torch.tensor(log_scale), temperature=temperature)
    doubles = leaves(VISUAL, TEACHER, TEXT[:9], log_scale, dtype=torch.float64)
    # The scores' bias, which the twin has, changes nothing.
    expected = gradients(distillation_twin(*doubles, temperature, bias=BIAS), doubles[:1])
    assert_near(gradients(loss, [student]), expected, FP32)


def test_distillation_of_the_teacher_itself_is_zero():
    (student,) = leaves(TEACHER)
    loss = distillation(student, TEACHER, TEXT, torch.tensor(LOG_SCALE))
    assert loss.item() == pytest.approx(0, abs=EXACT)
    loss.backward()
    assert student.grad.abs().max() < FP32


def test_only_the_student_gets_a_gradient_of_distillation():
    inputs = leaves(VISUAL, TEACHER, TEXT, LOG_SCALE)
    distillation(*inputs).backward()
    assert [x.grad is None for x in inputs] == [False, True, True, True]


# Ranks


class Case(NamedTuple):
    """Which rank holds each sample, which samples have texts, and the chunk."""

    owner_B: torch.Tensor
    captioned_B: torch.Tensor
    chunk: int


def cases(world):
    """Uneven shares, a rank without samples, one whose samples have no text; and all with ranks' shares permuted."""
    whole = torch.ones(B, dtype=torch.bool)
    some = torch.arange(B) % 4 > 0
    uneven = torch.arange(B).sqrt().long() % world  # shares of different size, in several pieces
    empty = uneven.clamp_max(max(world - 2, 0))
    untold = whole if world == 1 else uneven > 0
    shares = [(uneven, whole, 7), (uneven, some, 1), (empty, whole, B), (empty, some, 4096), (uneven, untold, 7)]
    permuted = [((owner + 1) % world, captioned, chunk) for owner, captioned, chunk in shares]
    return [Case(*case) for case in shares + permuted * (world > 1)]


class Towers(nn.Module):
    """A linear tower of each kind, and the loss on top, as an engine wraps them; in fp64."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.visual, self.text = nn.Linear(E, E).double(), nn.Linear(E, E).double()
        self.log_scale, self.bias = (nn.Parameter(x) for x in torch.tensor([2.0, -3.0], dtype=torch.float64))

    def forward(self, visual, text, **options):
        towers = F.normalize(self.visual(visual.double()), dim=1), F.normalize(self.text(text.double()), dim=1)
        return sigmoid_loss(*towers, self.log_scale, self.bias, **options)


def share(rank, case, group, towers):
    """What a rank gets: of the sigmoid loss, of distillation, and of towers trained with gradients averaged."""
    mine = case.owner_B == rank
    captioned = case.captioned_B[mine]
    options = {"captioned_B": captioned, "group": group, "chunk": case.chunk}
    text = TEXT[mine].where(captioned[:, None], torch.nan)
    inputs, (student,) = leaves(VISUAL[mine], text, LOG_SCALE, BIAS), leaves(VISUAL[mine])
    distilled = distillation(student, TEACHER[mine], text[captioned], torch.tensor(LOG_SCALE), group=group)
    towers.zero_grad()
    return {
        "sigmoid": gradients(sigmoid_loss(*inputs, **options), inputs),
        "labelled": gradients(sigmoid_loss(*inputs, **options, labels_B=LABELS[mine]), inputs),
        "distillation": gradients(distilled, [student]),
        "towers": trained(towers, towers(VISUAL[mine], TEXT[mine], **options)),
    }


def trained(towers, loss):
    loss.backward()
    return [loss.detach(), *(parameter.grad.clone() for parameter in towers.parameters())]


def work(rank, folder):
    """One process of four; the last one, two, three and all of them are the worlds."""
    torch.set_num_threads(1)
    meet = f"file://{folder}/meet"
    dist.init_process_group("gloo", init_method=meet, rank=rank, world_size=WORLDS[-1], timeout=timedelta(minutes=15))
    results = {}
    for world in WORLDS:
        first = WORLDS[-1] - world
        group = dist.new_group(range(first, WORLDS[-1])) if first else None
        if rank >= first:
            towers = nn.parallel.DistributedDataParallel(Towers(), process_group=group)
            results[world] = [share(rank - first, case, group, towers) for case in cases(world)]
    untold = Case(torch.zeros(B), torch.zeros(B, dtype=torch.bool), 7)
    results["untold"] = share(rank, untold, None, towers)
    torch.save(results, Path(folder, f"{rank}.pt"))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
    """What each of four processes got, by world, and what where no sample has a text."""
    folder = tmp_path_factory.mktemp("processes")
    multiprocessing.set_forkserver_preload(["torch", "torch.distributed", "torch.nn.parallel"])  # once for all four
    torch.multiprocessing.start_processes(work, (str(folder),), WORLDS[-1], start_method="forkserver")
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(WORLDS[-1])]


@pytest.fixture(params=WORLDS)
def ranks(request, processes):
    """Each case with what every rank of a world got."""
    results = [process[request.param] for process in processes if request.param in process]
    assert len(results) == request.param
    return [(case, [result[i] for result in results]) for i, case in enumerate(cases(request.param))]


def mean(results, position):
    return torch.stack([result[position] for result in results]).mean(0)


def whole(results, position, case):
    """Rows of all ranks in the order of the batch, as averaging engines scale them."""
    rows = torch.empty(B, E)
    for rank, result in enumerate(results):
        rows[case.owner_B == rank] = result[position] / len(results)
    return rows


def test_shares_of_the_cases_are_uneven_and_some_are_empty():
    for world in WORLDS[1:]:
        sizes = [case.owner_B.bincount(minlength=world) for case in cases(world)]
        assert any(len(set(size.tolist())) > 1 and size.all() for size in sizes)
        assert not all(size.all() for size in sizes)


def test_without_any_text_on_any_rank_every_loss_and_gradient_is_zero(processes):
    for process in processes:
        for values in process["untold"].values():
            assert not any(value.any() for value in values)


def test_sigmoid_loss_over_ranks_is_that_of_one_full_matrix(ranks):
    for case, results in ranks:
        shares = [result["sigmoid"] for result in results]
        rows = [whole(shares, position, case) for position in (1, 2)]
        assert not any(row[~case.captioned_B].any() for row in rows)
        found = [mean(shares, 0), *(row[case.captioned_B] for row in rows), mean(shares, 3), mean(shares, 4)]
        assert_near(found, truth(VISUAL[case.captioned_B], TEXT[case.captioned_B]), RANKS)


def test_labels_match_over_ranks_as_in_one_process(ranks):
    for case, results in ranks:
        shares, captioned = [result["labelled"] for result in results], case.captioned_B
        inputs = leaves(VISUAL[captioned], TEXT[captioned], LOG_SCALE, BIAS)
        expected = gradients(sigmoid_loss(*inputs, labels_B=LABELS[captioned]), inputs)
        rows = [whole(shares, position, case)[captioned] for position in (1, 2)]
        assert_near([mean(shares, 0), *rows, mean(shares, 3), mean(shares, 4)], expected, RANKS)


def test_distillation_over_ranks_is_that_of_one_process(ranks):
    for case, results in ranks:
        shares = [result["distillation"] for result in results]
        inputs = leaves(VISUAL, TEACHER, TEXT[case.captioned_B], LOG_SCALE, dtype=torch.float64)
        expected = gradients(distillation_twin(*inputs), inputs[:1])
        assert_near([mean(shares, 0), whole(shares, 1, case)], expected, FP32)


def test_towers_trained_on_ranks_get_the_gradient_of_one_process(ranks):
    for case, results in ranks:
        single, shares = Towers(), [result["towers"] for result in results]
        expected = trained(single, single(VISUAL, TEXT, captioned_B=case.captioned_B))
        assert_near([mean(shares, 0)], expected[:1], RANKS)
        for _, *found in shares:
            assert_near(found, expected[1:], RANKS)
