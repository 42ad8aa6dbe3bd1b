"""The objective: sums of terms by task, refusals of what cannot be trained, ranks equal to one process."""

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from atoken.errors import CheckpointError
from atoken.modalities.pixels import patchify
from atoken.pretrain import cost, losses
from atoken.pretrain.batches import Batch
from atoken.pretrain.crops import SurfaceTargets
from atoken.pretrain.curriculum import CURRICULA
from atoken.pretrain.objective import Objective
from atoken.pretrain.stages import Task, Term
from atoken.pretrain.teachers import NO_TEACHERS, Teachers
from atoken.tokens import SparseTokens
from atoken.train.cost import count
from tests.model.sizes import small_model
from tests.pretrain.small_teachers import small_siglip, small_teachers
from tests.pretrain.tiny import stage_of
from tests.tokenizer.texts import small_texts_model, text_sizes, words
from tests.tolerances import FP32

FIRST = CURRICULA["base"]["1"]
ALIGNED = CURRICULA["base"]["2"].tasks["video-text"]
CAPTIONS = ("a red box", "", "the green cone", "two spheres")


def tokens(seed, sizes=((32, 16), (16, 16), (16, 48), (32, 32)), frames=1):
    generator = torch.Generator().manual_seed(seed)
    return SparseTokens.pack([patchify(torch.rand(frames, *size, 3, generator=generator) * 2 - 1) for size in sizes])


def narrow(tokens):
    return tokens.with_feats(tokens.feats[:, :768])


def images(task, captions=(), seed=0):
    return Batch(task=task, tokens=narrow(tokens(seed)), captions=captions)


@pytest.fixture(scope="module")
def teachers():
    return small_teachers()


def summed(objective, batch, names):
    """The loss is the weighted sum of terms of these names."""
    loss, terms = objective(batch)
    assert set(terms) == names
    terms_of = objective.stage.tasks[batch.task].terms
    expected = sum(term.weight * terms[term.fn.__name__] for term in terms_of if term.weight)
    torch.testing.assert_close(loss.detach(), expected, rtol=FP32, atol=0)
    assert loss.requires_grad
    assert not any(value.requires_grad for value in terms.values())


def test_the_loss_is_the_weighted_sum_of_the_terms_of_the_batch_s_task(teachers):
    objective = Objective(
        small_texts_model(),
        replace(FIRST, tasks=FIRST.used | {"video-text": ALIGNED}, mixture={"image": 1, "video-text": 1}),
        teachers,
        words(),
    )
    decoded = []
    objective.model.decoder.register_forward_hook(lambda *_: decoded.append(1))
    summed(objective, images("image-text", CAPTIONS), {"semantics"})
    videos = Batch(task="video-text", tokens=tokens(1, frames=20), captions=CAPTIONS)
    summed(objective, videos, {"alignment"})
    assert not decoded
    summed(objective, images("image"), {"l1", "kl", "lpips", "gram", "clip"})
    assert len(decoded) == 1


def reconstructed(batch, *, sampled, **sizes):
    """L1 of a model, and what it gives for the mean and for a draw of the micro-batch's own noise."""
    model = small_model(**sizes)
    objective = Objective(model, stage_of({"image": Task("image", (Term(losses.l1, 1.0),), sampled=sampled)}))
    encoded = model.encode(batch.tokens)
    drawn = encoded.posterior.sample(torch.Generator().manual_seed(batch.noise))
    wanted = batch.tokens.feats
    mean, draw = (
        (model.decode(encoded.latents.with_feats(latents)).feats[:, :768] - wanted).abs().mean()
        for latents in (encoded.latents.feats, drawn)
    )
    return objective(batch)[0], mean, draw


def test_what_is_decoded_is_the_mean_or_a_draw_that_is_the_micro_batches_own():
    batch = replace(images("image"), noise=2**64 - 1)
    loss, mean, draw = reconstructed(batch, sampled=True)
    torch.testing.assert_close(loss, draw)
    assert abs(loss - mean) > 1e-4
    loss, mean, draw = reconstructed(batch, sampled=False)
    torch.testing.assert_close(loss, mean)
    loss, mean, draw = reconstructed(batch, sampled=True, fsq_levels=(4,) * 6)
    torch.testing.assert_close(loss, mean)  # codes are what they are


def test_gaussians_are_of_the_batchs_patches():
    model = small_model(gaussian_decoder={"width": 48, "layers": 1, "heads": 4, "mlp": 64})
    tasks = {"surface": Task("surface", (Term(losses.position, 1.0), Term(losses.color, 3.0)))}
    found = narrow(tokens(2, [(64, 32)]))
    points, colors = torch.rand(2, 8 * 32, 3, generator=torch.Generator().manual_seed(0)) - 0.5
    everywhere = torch.ones(len(points), dtype=torch.bool)
    targets = SurfaceTargets(points, colors, everywhere, everywhere)
    batch = Batch(task="surface", tokens=found, targets=targets)
    summed(Objective(model, stage_of(tasks)), batch, {"position", "color"})


def test_teachers_are_no_part_of_the_module(teachers):
    model = small_texts_model()
    objective = Objective(model, FIRST, teachers, words())
    assert set(objective.state_dict()) == {f"model.{name}" for name in model.state_dict()}
    assert len(list(objective.modules())) == len(list(model.modules())) + 1


def test_a_model_of_images_needs_no_text_side_and_no_teacher():
    assert set(FIRST.without_teachers().used) == {"image"}
    summed(Objective(small_model(), FIRST.without_teachers()), images("image"), {"l1", "kl"})


def says(match, *arguments):
    with pytest.raises(CheckpointError, match=match) as caught:
        Objective(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(("lost", "task"), [("vgg", "image"), ("clip", "image"), ("siglip", "image-text")])
def test_a_teacher_that_is_missing_is_named(teachers, lost, task):
    said = says(f"Task {task} needs the teacher {lost}", small_texts_model(), FIRST, replace(teachers, **{lost: None}))
    assert said.endswith("or train with --teachers none.")


def weighted(task, **weights):
    """The task with other weights of its terms."""
    return replace(task, terms=tuple(replace(t, weight=weights.get(t.fn.__name__, t.weight)) for t in task.terms))


def test_a_term_of_weight_0_needs_no_teacher(teachers):
    image = weighted(FIRST.tasks["image"], lpips=0, gram=0)
    assert image.teachers == {"clip"}
    objective = Objective(small_model(), stage_of({"image": image}), replace(teachers, vgg=None, heads=None))
    summed(objective, images("image"), {"l1", "kl", "clip"})
    without_l1 = weighted(image, l1=0, clip=0)  # a term without teacher is still shown
    summed(Objective(small_model(), stage_of({"image": without_l1})), images("image"), {"l1", "kl"})


def test_perceptual_terms_of_nano_are_off_until_they_are_asked_for(teachers):
    task = CURRICULA["nano"]["1"].tasks["image"]
    assert task.teachers == set()
    objective = Objective(small_model(), stage_of({"image": weighted(task, stlpips=0.1, stlpips_gram=1.0)}), teachers)
    summed(objective, images("image"), {"l1", "kl", "stlpips", "stlpips_gram"})


def test_a_task_whose_terms_all_have_weight_0_is_refused():
    task = weighted(FIRST.tasks["image-text"], semantics=0)
    assert (task.teachers, task.texts) == (set(), False)
    says("All terms of task image-text have weight 0", small_model(), stage_of({"image-text": task}))


def test_a_task_with_texts_needs_the_text_side():
    for model, texts in ((small_model(), words()), (small_texts_model(), None)):
        says("Task video-text needs a text side", model, stage_of({"video-text": ALIGNED}), NO_TEACHERS, texts)
        siglip = Teachers(siglip=small_siglip())
        captioned = stage_of({"image-text": FIRST.tasks["image-text"]})
        says("Task image-text needs a text side", model, captioned, siglip, texts)


@pytest.mark.parametrize("change", [{"vocab_size": 18}, {"max_position_embeddings": 13}, {"projection_size": 48}])
def test_the_teacher_of_similarities_must_be_that_of_the_model(change):
    ((size, number),) = change.items()
    siglip = Teachers(siglip=small_siglip(**change))
    stage = stage_of({"image-text": FIRST.tasks["image-text"]})
    says(f"teacher siglip of task image-text has {size} {number}", small_texts_model(), stage, siglip, words())


def test_teachers_see_images_alone(teachers):
    task = replace(FIRST.tasks["image"], modality="video")
    says("Task shown is of modality video", small_texts_model(), stage_of({"shown": task}), teachers, words())


# What is trained


def test_the_encoder_has_its_own_rate_only_matrices_decay_and_muon_is_for_those_of_blocks():
    stage = replace(FIRST, encoder_lr=0.1, frozen=("text_tower.", "logit_"))
    objective = Objective(small_texts_model(), stage.without_teachers(), texts=words())
    named, seen = dict(objective.named_parameters()), []
    for group in objective.parameter_groups():
        seen += group.names
        for name in group.names:
            assert group.lr_scale == (0.1 if name.startswith("model.encoder.") else 1.0)
            assert group.decay == (named[name].ndim > 1)
            assert group.muon == (named[name].ndim == 2 and ".blocks." in name)
    assert len(seen) == len(set(seen))
    frozen = objective.frozen().keys()
    assert frozen == named.keys() - set(seen)
    assert frozen == {name for name in named if name.removeprefix("model.").startswith(objective.stage.frozen)}


def test_the_layout_counts_passes_through_the_encoder():
    objective = Objective(small_texts_model(), COSTED, texts=words())
    assert objective.layout(of_sizes("image", (1, 32, 32), (1, 16, 16))) == 1
    assert objective.layout(of_sizes("video", (16, 16, 16), (20, 16, 16))) == 2


# What a step costs

PATCHES = (Term(losses.l1, 1.0), Term(losses.kl, 1e-4))
COSTED = stage_of(
    {"image": Task("image", PATCHES), "video": Task("video", PATCHES),
     "surface": Task("surface", (Term(losses.position, 1.0),)),
     "caption": Task("image", (Term(losses.alignment, 0.1, texts=True),))},
    frozen=("gaussian_decoder.", "encoder.inputs."),
)  # fmt: skip


def of_sizes(task, *sizes, targets=None):
    """Images or videos of (frames, height, width)."""
    samples = [patchify(torch.zeros(*size, 3)) for size in sizes]
    tokens = SparseTokens.pack(samples)
    return Batch(task, narrow(tokens) if sizes[0][0] == 1 else tokens, targets=targets)


def counted(objective, batch):
    """FLOPs of its network, on the meta device."""
    network = cost.Network(objective.model.config, COSTED.frozen, cost.reads(COSTED.tasks[batch.task]))
    return sum(count(network, batch.tokens.with_feats(batch.tokens.feats.to("meta")))[:2])


@pytest.mark.parametrize(
    ("task", "sizes"),
    [
        ("caption", [(1, 16, 32), (1, 32, 32)]),
        ("image", [(1, 32, 32), (1, 16, 48)]),
        ("video", [(24, 32, 32), (8, 16, 48)]),
        ("surface", [(1, 32, 32)]),
    ],
)
def test_flops_are_those_of_what_a_task_reads(task, sizes):
    model = small_model(text=text_sizes(96), gaussian_decoder={"width": 32, "layers": 2, "heads": 2, "mlp": 48})
    objective = Objective(model, COSTED, texts=words())
    batch = of_sizes(task, *sizes)
    assert objective.flops(batch) == counted(objective, batch) > 0


@pytest.mark.parametrize(
    ("even", "uneven"),
    [
        ([(1, 32, 32), (1, 32, 32)], [(1, 48, 32), (1, 16, 32)]),
        ([(24, 16, 16), (24, 16, 16)], [(32, 16, 16), (16, 16, 16)]),  # attention stays in tiles of 16 frames
    ],
)
def test_attention_is_counted_as_the_sum_of_squared_lengths(even, uneven):
    objective = Objective(small_texts_model(), COSTED, texts=words())
    pairs = [16 + 16, 36 + 4] if even[0][0] == 1 else [16 + 4 + 16 + 4, 16 + 16 + 16]
    flops = [objective.flops(of_sizes("video", *sizes)) for sizes in (even, uneven)]
    passes, layers, width = 3, 4, 96  # forward and twice that backward; two layers of each side
    assert flops[1] - flops[0] == passes * layers * 4 * width * (pairs[1] - pairs[0])


@pytest.mark.parametrize("fn", [losses.l1, losses.kl, losses.alignment])
def test_what_is_said_to_read_patches_decodes(fn):
    task, calls = Task("image", (Term(fn, 1.0),)), []
    objective = Objective(small_texts_model(), stage_of({"image": task}), texts=words())
    objective.model.decoder.register_forward_hook(lambda *_: calls.append(1))
    objective(images("image", CAPTIONS))
    assert bool(calls) == ("patches" in cost.reads(task))


# Ranks

WORLD = 2
UNDERSTANDING = {"image-text": FIRST.tasks["image-text"], "video-text": ALIGNED}
SHARES = ((0, 1, 2), (3, 4))  # samples of each rank
TOLD = {"some": ("a red box", "", "the cone", "two spheres", ""), "one rank": ("a red box", "", "the cone", "", "")}


def rows(of, samples):
    parts = of.unpack()
    return SparseTokens.pack([parts[sample] for sample in samples])


def trained(samples, wrap):
    """Losses and gradients of two tasks, with captions of two kinds, after each other."""
    wrapped = wrap(Objective(small_texts_model(), stage_of(UNDERSTANDING), Teachers(siglip=small_siglip()), words()))
    whole, found = narrow(tokens(3, [(32, 16), (16, 16), (16, 48), (32, 32), (48, 16)])), {}
    for task in UNDERSTANDING:
        for told, captions in TOLD.items():
            wrapped.zero_grad()
            said = tuple(captions[i] for i in samples)
            loss, _ = wrapped(Batch(task=task, tokens=rows(whole, samples), captions=said))
            loss.backward()
            gradients = {n.removeprefix("module."): p.grad for n, p in wrapped.named_parameters() if p.grad is not None}
            found[f"{task} {told}"] = {"loss": loss.detach(), **{n: x.clone() for n, x in gradients.items()}}
    return found


def work(rank, folder):
    torch.set_num_threads(1)
    options = {"rank": rank, "world_size": WORLD, "timeout": timedelta(minutes=15)}
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", **options)
    made = trained(SHARES[rank], lambda x: nn.parallel.DistributedDataParallel(x, find_unused_parameters=True))
    torch.save(made, Path(folder, f"{rank}.pt"))
    dist.destroy_process_group()


def test_understanding_on_ranks_is_that_of_one_process_also_where_a_rank_has_no_caption(tmp_path):
    torch.multiprocessing.spawn(work, (str(tmp_path),), WORLD)
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(WORLD)]
    for case, expected in trained(sum(SHARES, ()), lambda x: x).items():
        losses_of = torch.stack([found[case].pop("loss") for found in ranks])
        torch.testing.assert_close(losses_of.mean(), expected.pop("loss"), rtol=FP32, atol=FP32)
        largest = max(float(gradient.abs().max()) for gradient in expected.values())
        assert largest > 0
        for found in ranks:
            for name, gradient in expected.items():
                torch.testing.assert_close(found[case][name], gradient, rtol=0, atol=FP32 * largest)


def test_activation_checkpointing_changes_no_gradient_and_warns_of_nothing(recwarn):
    task = Task("image", (Term(losses.l1, 1.0),))
    gradients = []
    for checkpointing in (False, True):
        model = small_model().train()
        loss, _ = Objective(model, stage_of({"image": task}, checkpointing=checkpointing))(images("image"))
        loss.backward()
        assert model.encoder.gradient_checkpointing == checkpointing
        gradients.append(model.encoder.inputs.weight.grad)
    assert torch.equal(*gradients)
    assert [str(warning.message) for warning in recwarn if issubclass(warning.category, FutureWarning)] == []


def test_texts_leave_the_code_of_a_linear_start_alone():
    """The same losses; of the encoder's writing, texts train the channels behind the code alone, images all of it."""
    matched, patches = Term(losses.label_alignment, 1.0, texts=True), Term(losses.l1, 1.0)
    stage = stage_of({"image": Task("image", (patches,)), "words": Task("image", (matched,))})
    found = {}
    for kept in (False, True):
        model = small_texts_model()
        code = model.config.latent_channels
        objective = Objective(model, replace(stage, code_kept=kept), texts=words())
        for task in ("words", "image"):
            objective.zero_grad()
            loss, _ = objective(images(task, CAPTIONS))
            loss.backward()
            block = model.encoder.blocks[0]
            written = [model.encoder.inputs.weight, block.attention.out.weight, block.mlp.down.weight]
            position = model.encoder.position.weight.grad
            grads = [weight.grad for weight in written] + [position.T]
            found[kept, task] = (loss.item(), [bool(g[:code].any()) for g in grads], [g[code:].any() for g in grads])
    assert found[True, "words"][0] == found[False, "words"][0]
    assert found[True, "image"] == found[False, "image"]
    assert found[False, "words"][1] == [True] * 4
    assert found[True, "words"][1] == [False] * 4
    assert all(all(behind) for _, _, behind in found.values())
