"""``atoken train``: stages are planned, trained one from the other, and resumed; wrong words get one sentence."""

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import atoken
from atoken.cli import main
from atoken.data.sources import FolderSource
from atoken.data.synthetic import procedural
from atoken.errors import AtokenError, CheckpointError
from atoken.metrics.pixels import psnr
from atoken.presets import BUNDLED
from atoken.pretrain import command
from atoken.pretrain.command import chosen, start_of
from atoken.pretrain.curriculum import CURRICULA, IMAGES, NANO_1, TUNING
from atoken.pretrain.stages import Task
from atoken.pretrain.start import text_start
from atoken.train.checkpoints import Checkpoints
from tests.cli.cases import files_in, image, says_one_sentence

EVERY = [(name, stage) for name, stages in CURRICULA.items() for stage in (*stages.values(), TUNING[name])]
SMALL = [
    *(f"tasks.{name}.tokens=64" for name in CURRICULA["nano"]["1"].tasks),
    *(f"tasks.{name}.patches=4,16" for name in ("image", "video", "image-text", "video-text")),
    *(f"tasks.{name}.length=1,2" for name in ("video", "video-text")), "tasks.asset-text.patches=1,64", "warmup=0",
]  # fmt: skip
PATIENCE = 600  # seconds for a launch
ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(atoken.__file__).parents[1]), "OMP_NUM_THREADS": "1"}


def rows(folder, name="log"):
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]


def decibels(tokenizer, pixels):
    return psnr(tokenizer.decode(tokenizer.encode(pixels)).pixels, pixels)


def weights(folder):
    return load_file(folder / "model.safetensors")


@pytest.fixture(autouse=True)
def few_captions(monkeypatch):
    """From which a new text side counts its words."""
    monkeypatch.setattr(text_start, "CAPTIONS", 5)


@pytest.fixture
def train(run):
    """Train in small micro_batches, without processes of their own for data."""

    def command(*arguments, changes=()):
        return run("train", *arguments, "--device", "cpu", "--workers", 0, "--set", *SMALL, *changes)

    return command


# Plans


@pytest.mark.parametrize(("preset", "stage"), EVERY)
def test_every_stage_has_a_plan_and_nothing_is_written(preset, stage, run, there):
    code, out, error = run("train", "--preset", preset, "--stage", stage.name, "--plan")
    assert (code, error, files_in(there)) == (0, "", [])
    assert out.startswith(f"stage        {stage.name}, ")
    assert all(f"\n{task} " in out and f"\nloss of {task}: " in out for task in stage.used)
    terms = [f"{term.weight:g} {term.fn.__name__}" for task in stage.used.values() for term in task.terms]
    for words in (stage.preset, f"{stage.recipe.steps:,}", *(stage.teachers or ["none"]), "ZeRO 3", "H100", *terms):
        assert words in out


def test_a_plan_of_all_stages_is_theirs_one_after_another(run):
    alone = [run("train", "--stage", stage, "--plan")[1] for stage in CURRICULA["nano"]]
    assert run("train", "--plan")[1] == "".join(alone)


def test_a_plan_is_of_the_stage_as_it_is_changed(run):
    out = run("train", "--preset", "base", "--stage", "1", "--plan", "--gpus", 8, "--gpu", "A100", "--mfu", 0.3,
              "--teachers", "none", "--set", "steps=77", "tasks.image.micro_batches=16")[1]  # fmt: skip
    assert "77, " in out
    assert "8 A100 at an MFU of 30%" in out
    assert "image-text" not in out
    assert "lpips" not in out


# Runs


def test_a_stage_is_trained_resumed_and_then_done(train, there):
    runs = there / "runs"
    assert train("--stage", "1", changes=["steps=2"]) == (0, "1: runs/1/model\n", "")
    assert [row["step"] for row in rows(runs / "1")] == [0, 1]
    assert train("--stage", "1", changes=["steps=3"])[0] == 0
    assert [row["step"] for row in rows(runs / "1")] == [0, 1, 2]
    assert json.loads((runs / "1" / "start-000002.json").read_text())["recipe"]["steps"] == 3
    log, model = (runs / "1" / "log.jsonl").read_text(), weights(runs / "1" / "model")
    assert train("--stage", "1", changes=["steps=3"])[0] == 0
    assert (runs / "1" / "log.jsonl").read_text() == log
    again = weights(runs / "1" / "model")
    assert all(torch.equal(model[name], again[name]) for name in model)


def test_each_stage_starts_from_what_the_one_before_left(train, there):
    still = ["steps=1", "lr=0", "final_lr=0"]  # so that a stage hands on what it was given
    code, out, _ = train("-o", "mine", changes=still)
    assert (code, out) == (0, "".join(f"{name}: mine/{name}/model\n" for name in CURRICULA["nano"]))
    first, *others = (weights(there / "mine" / name / "model") for name in CURRICULA["nano"])
    *same, discrete = others
    assert all(torch.equal(model[name], first[name]) for model in same for name in first)
    assert torch.equal(discrete["decoder.blocks.1.mlp.up.weight"], first["decoder.blocks.0.mlp.up.weight"])


def test_a_stage_starts_from_the_folder_that_is_named(train, there):
    changes = ["steps=1", "lr=0", "final_lr=0"]
    assert train("--stage", "surface", "--start", BUNDLED / "nano", changes=changes)[0] == 0
    trained, bundled = weights(there / "runs" / "surface" / "model"), weights(BUNDLED / "nano")
    kept = [name for name in bundled if not name.startswith("logit_")]  # new, where the text side is new
    assert all(torch.equal(trained[name], bundled[name]) for name in kept)


def test_images_come_from_the_file_that_is_named(train, there):
    for number in range(3):
        image(there / "images" / f"{number}.png", 64, 48, seed=number)
    (there / "data.toml").write_text('[image.mine]\nfolder = "images"\n')
    changes = ["steps=2", "auxiliary=[]"]
    assert train("--stage", "1", "--data", "data.toml", changes=changes)[0] == 0
    assert [row["broken"] for row in rows(there / "runs" / "1")] == [0, 0]
    (there / "images" / "1.png").write_text("no image")
    result = train("--stage", "1", "--data", "data.toml", "-o", "b", changes=changes)
    says_one_sentence(result, "samples are broken, over the limit of 10%")  # few as they are
    (there / "data.toml").write_text('most_broken = 0.5\n[image.mine]\nfolder = "images"\n')
    assert train("--stage", "1", "--data", "data.toml", "-o", "c", changes=changes)[0] == 0
    assert rows(there / "c" / "1")[-1]["broken"] > 0


def test_a_model_is_tuned_to_a_folder_of_images_of_which_some_are_held_out_to_measure_it(run, there):
    (there / "mine").mkdir()
    mine = [procedural.make_image(9, index, 64, 64).frames[0] for index in range(3)]
    for number, pixels in enumerate(mine):
        Image.fromarray(pixels).save(there / "mine" / f"{number}.png")
    few = ["--set", "steps=25", "warmup=5", "tasks.image.tokens=64", "--device", "cpu", "--workers", 0]
    code, out, error = run("train", "--stage", "tune", "--data", "mine", *few)
    before, after = atoken.load("nano"), atoken.load(there / "runs" / "tune" / "model")
    (held,), _ = FolderSource("mine").split(0.1)
    figures = [decibels(model, mine[int(Path(held.key).stem)]) for model in (before, after)]
    said = re.fullmatch(r"tune: runs/tune/model\ntune: PSNR of held-out images: (\S+) dB before, (\S+) dB after\n", out)
    assert code == 0
    assert "Held out of mine, to measure: 1 images.\n" in error
    assert [float(figure) for figure in said.groups()] == pytest.approx(
        figures, abs=0.05
    )  # the model is stored in bf16
    logged = [row["held-out/psnr"] for row in rows(there / "runs" / "tune", "evaluation")]
    assert [f"{figure:.2f}" for figure in logged] == [*said.groups()]
    trained = [pixels for number, pixels in enumerate(mine) if str(number) != Path(held.key).stem]
    assert all(decibels(after, pixels) > decibels(before, pixels) for pixels in trained)
    assert torch.equal(after.embed_text(["a red ring"]), before.embed_text(["a red ring"]))


def test_a_folder_of_one_image_is_trained_on_and_nothing_is_held_out(run, there):
    (there / "mine").mkdir()
    Image.fromarray(procedural.make_image(9, 0, 64, 64).frames[0]).save(there / "mine" / "0.png")
    few = ["--set", "steps=1", "tasks.image.tokens=64", "--device", "cpu", "--workers", 0]
    code, out, error = run("train", "--stage", "tune", "--data", "mine", *few)
    assert (code, out) == (0, "tune: runs/tune/model\n")
    assert "mine has a single image: it is trained on, and none is left to measure the result with." in error


def test_without_teachers_their_terms_are_left_out_and_the_record_says_so(train, there, monkeypatch):
    taught = replace(NANO_1, name="taught", tasks={"image": Task("image", IMAGES)}, mixture={"image": 1}, auxiliary=())
    monkeypatch.setitem(CURRICULA["nano"], "taught", taught)
    changes = ["steps=1", "tasks.image.tokens=64", "tasks.image.patches=4,16"]
    options = ["train", "--stage", "taught", "--device", "cpu", "--workers", "0", "--set", *changes]
    assert main([*options, "--teachers", str(there)]) == 1  # a folder that has none
    assert files_in(there) == []
    assert main([*options, "--teachers", "none"]) == 0
    record = json.loads((there / "runs" / "taught" / "start-000000.json").read_text())
    assert record["launch"]["teachers"] == {}
    assert [term["fn"] for term in record["stage"]["tasks"]["image"]["terms"]] == ["l1", "kl"]


@contextmanager
def started(folder):
    """A run in a group of processes of its own, that has made a few steps."""
    words = ["--stage", "1", "--start", "nano", "--device", "cpu", "--workers", "1"]
    run = subprocess.Popen(
        [sys.executable, "-m", "atoken", "train", *words, "--set", *SMALL, "steps=100000", "auxiliary=[]"],
        cwd=folder, start_new_session=True, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT,
    )  # fmt: skip
    log = folder / "runs" / "1" / "log.jsonl"
    while not (log.exists() and log.read_text().count("\n") > 2):
        assert run.poll() is None, run.stderr.read()
        time.sleep(0.05)
    with run:
        yield run


@pytest.mark.timeout(PATIENCE)
def test_a_signal_to_all_processes_of_a_run_saves_it(there):
    with started(there) as run:
        os.killpg(run.pid, signal.SIGTERM)
        assert run.wait(PATIENCE) == 128 + signal.SIGTERM
    assert len(Checkpoints(there / "runs" / "1").folders()) == 1


def children(pid):
    """Processes that make batches."""
    of = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in of if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs Linux")
@pytest.mark.timeout(PATIENCE)
def test_a_run_whose_process_is_killed_says_so_and_ends(there):
    with started(there) as run:
        os.kill(children(run.pid)[0], signal.SIGKILL)
        assert run.wait(PATIENCE) == 1
        assert "atoken: A process that makes batches died" in run.stderr.read().splitlines()[-1]


@pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="needs the extra zero")
@pytest.mark.timeout(2 * PATIENCE)
def test_launched_twice_it_is_one_run_and_one_voice(there):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"]
    changes = [*SMALL, "steps=2", "tasks.image.micro_batches=2", "tasks.image-text.micro_batches=2"]
    words = ["--", "atoken", "train", "--stage", "1", "--start", "nano", "--device", "cpu", "--workers", "0"]
    with (there / "said").open("w") as said:
        launched = subprocess.Popen(
            [*launcher, *words, "--set", *changes], env=ENVIRONMENT, stdout=said, stderr=subprocess.STDOUT
        )
    try:
        code = launched.wait(PATIENCE)
    finally:
        launched.terminate()  # and the ranks with it
        launched.wait()
    spoken = (there / "said").read_text()
    assert code == 0, spoken
    assert spoken.splitlines().count("1: runs/1/model") == 1
    assert [row["step"] for row in rows(there / "runs" / "1")] == [0, 1]


@pytest.mark.parametrize("launched", [[], ["--local_rank=1"]], ids=["alone", "by deepspeed"])
def test_the_package_is_the_program(launched):
    command = [sys.executable, "-m", "atoken", *launched, "--version"]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (0, f"atoken {atoken.__version__}\n")


# Where a stage starts


def test_what_a_run_left_goes_before_what_is_bundled(there):
    stage = CURRICULA["nano"]["4"]
    assert start_of(stage, there, None) == BUNDLED / "nano"
    (there / "colors" / "model").mkdir(parents=True)
    assert start_of(stage, there, None) == there / "colors" / "model"
    assert start_of(stage, there, there) == there
    assert start_of(NANO_1, there, None) is None


def test_a_run_that_resumes_needs_no_start(there):
    stage = CURRICULA["so400m-c"]["2"]
    with pytest.raises(CheckpointError, match=r"starts from stage 1, and there is no .*train that stage first"):
        start_of(stage, there, None)
    (there / "2" / "step-000003").mkdir(parents=True)
    assert start_of(stage, there, None) is None


def test_of_all_stages_a_change_of_a_task_is_for_those_that_have_it(there):
    stages = chosen(
        "so400m-c", "all", ["tasks.video.micro_batches=240", "tasks.image.micro_batches=240", "steps=7"], None
    )
    assert [stage.tasks["video"].micro_batches for stage in stages if "video" in stage.tasks] == [240, 240, 240]
    assert {(stage.tasks["image"].micro_batches, stage.recipe.steps) for stage in stages} == {(240, 7)}
    with pytest.raises(AtokenError, match=r"there is no task 'vidio' \(did you mean video"):
        chosen("nano", "all", ["tasks.vidio.micro_batches=240"], None)


def test_what_ranks_cannot_do_is_said_before_the_first_stage(there, monkeypatch):
    stages = chosen("nano", "all", [], None)
    options = {"data": None, "start": None, "teachers": None, "device": "cpu", "workers": 0, "evaluate_every": 0}
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(AtokenError, match="cannot be shared out evenly to 2 ranks"):
        next(command.train(stages, there / "runs", zero=None, **options))
    monkeypatch.delenv("WORLD_SIZE")
    with pytest.raises(AtokenError, match="Muon needs whole matrices"):
        next(command.train(stages, there / "runs", zero=0, **options))
    assert files_in(there) == []


def test_texts_need_a_model_with_a_text_side(there):
    (stage,) = chosen("so400m-c", "1", [], None)
    with pytest.raises(CheckpointError, match="atoken convert SIGLIP2 --preset so400m-c-s1 --text SIGLIP2 -o START"):
        start_of(stage, there, None)
    (without,) = chosen("so400m-c", "1", [], "none")
    assert start_of(without, there, None) is None


# What goes wrong


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--preset", "huge"], "no curriculum for huge; there are those for nano, base, so400m-c"),
        (["--stage", "5"], "nano has no stage 5; there are 1, 2, 3, surface, colors, 4, tune, or all but tune"),
        (["--stage", "surface"], "there is no runs/3/model: train that stage first"),
        (["--start", "nowhere"], "no folder nowhere"),
        (["--stage", "tune"], "images of your own: pass their folder with --data"),
        (["--stage", "tune", "--data", "procedural", "--start", "nano-d"], "cannot start from a discrete one"),
        (["--data", "nowhere.toml"], "Cannot read nowhere.toml"),
        (["--set", "step=3"], "did you mean steps"),
        (["--set", "steps=0"], "steps cannot be 0: expected a whole number >= 1"),
        (["--plan", "--gpu", "abacus"], "The peak of abacus is not known"),
        (["--plan", "--gpus", "3"], "cannot be shared out evenly to 3 ranks"),
        (["--preset", "base", "--stage", "1", "--start", ".", "--teachers", "."], "vgg16-.* --teachers none"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_is_wrong_is_said_in_one_sentence_before_anything_is_trained(words, sentence, run, there):
    says_one_sentence(run("train", *words), sentence)
    assert files_in(there) == []


def test_denormals_are_numbers_again_after_training(run):
    run("train", "--start", "nowhere")
    assert torch.full((1,), 1e-310, dtype=torch.float64).mul(2).item() > 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_said(run):
    says_one_sentence(run("train", "--device", "cuda"), "no GPU that torch can use")


@pytest.mark.parametrize(
    "words", [["--zero", "4"], ["--workers", "-1"], ["--workers", "two"], ["--device", "tpu"], ["repost", "x"]], ids=str
)
def test_wrong_usage_is_exit_code_2(words, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["train", *words])
    assert stop.value.code == 2
    assert "usage: atoken train" in capsys.readouterr().err


def test_a_run_is_reported_on_one_page(run, there):
    (there / "run").mkdir()
    (there / "run" / "log.jsonl").write_text('{"step": 0, "modality": "image", "loss": 0.5, "norm": 1.0}\n')
    assert run("train", "report", "run") == (0, "run/report.html\n", "")
    assert "0.5" in (there / "run" / "report.html").read_text()
    assert run("train", "report", "run", "-o", "mine.html")[0] == 0
    assert (there / "mine.html").read_bytes() == (there / "run" / "report.html").read_bytes()
    says_one_sentence(run("train", "report", "nowhere"), "not the folder of a run")
