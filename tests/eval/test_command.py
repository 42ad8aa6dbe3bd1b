"""What a user does on the command line: a folder to a report, a task, a table, a comparison; and its exit codes."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from atoken.data.synthetic.procedural import make_image
from atoken.io import Image, Video, write_image, write_video
from atoken.loading import load
from atoken.presets import BUNDLED
from eval import commands, rate, tasks
from eval.command import main, parser
from eval.models.by_name import file_name
from eval.probes import table
from eval.protocol import FORMAT

ROOT = Path(__file__).parents[2]


@pytest.fixture
def photographs(tmp_path):
    folder = tmp_path / "photographs"
    folder.mkdir()
    for number in range(3):
        write_image(Image(make_image(7, number, 48, 64).frames[0]), folder / f"{number}.png")
    return folder


def result(folder):
    found = json.loads((folder / "result.json").read_text())
    assert found["format"] == FORMAT
    return found


def test_a_folder_to_a_report_without_any_configuration(photographs, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["reconstruct", str(photographs), "--model", "jpeg:80", "-o", str(out)]) == 0
    (row,) = result(out)["rows"]
    assert (row["task"], row["status"], row["items"]["measured"]) == ("local-images", "complete", 3)
    assert {"psnr", "ssim", "blocking artefacts"} <= set(row["numbers"])
    assert set(row["skipped"]) == {"lpips", "ST-LPIPS", "ms-ssim", "Fréchet (EfficientNet-Lite0)"}
    lines = [json.loads(line) for line in (out / row["items"]["file"]).read_text().splitlines()]
    bits = 8 * sum(line["bytes"] for line in lines) / sum(line["pixels"] for line in lines)
    assert row["numbers"]["bits per pixel"]["value"] == pytest.approx(bits, rel=1e-12)
    assert [line["pixels"] for line in lines] == [48 * 64] * 3
    printed = capsys.readouterr()
    assert "local-images" in printed.out
    assert str(out / "report.html") in printed.out
    assert "no ms-ssim: MS-SSIM needs sides of 176" in printed.err
    page = (out / "report.html").read_text()
    assert "data:image/png;base64," in page
    assert "0.png" in page
    assert "| model | items | psnr" in (out / "report.md").read_text()


@pytest.mark.parametrize(("model", "numbers"), [("nano", {"psnr", "ssim"}), ("nano-d", {"psnr", "codes used/7"})])
def test_the_bundled_models(photographs, tmp_path, model, numbers):
    assert main(["reconstruct", str(photographs), "--model", model, "-o", str(tmp_path), "--device", "cpu"]) == 0
    (row,) = result(tmp_path)["rows"]
    assert (row["model"], row["identity"]["model"]) == (model, model)
    assert numbers <= set(row["numbers"])
    assert row["protocol"]["dtype"] == "float32"


def test_the_same_command_again_measures_nothing_and_gives_the_same(photographs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = Path("out/webp-60/reconstruct-photographs")
    arguments = ["reconstruct", str(photographs), "--model", "webp:60"]
    assert main(arguments) == 0
    first = result(out)["rows"]
    monkeypatch.setattr("eval.models.codecs.ImageCodec.reconstruct", None)
    assert main(arguments) == 0
    assert result(out)["rows"] == first


def test_other_data_models_and_settings_have_folders_of_their_own(photographs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in (tmp_path / "b" / "photographs", photographs / "inner"):
        folder.mkdir(parents=True)
        write_image(Image(make_image(8, 0, 48, 64).frames[0]), folder / "0.png")
    places = []

    def noted(options, tasks, called, seed=None):
        places.append(str(commands.result_folder(options, options.model, called)))
        return 0

    monkeypatch.setattr(commands, "_measured", noted)
    many = ["code-usage", "procedural-images", "procedural-assets", "procedural-videos"]
    for words in (
        "reconstruct photographs", "reconstruct ./photographs/", f"reconstruct {photographs}",
        "reconstruct b/photographs", "reconstruct photographs/inner", "run photographs",
        "run photographs --items 1 --seed 7", "table3 --data b",
        f"run {' '.join(many)}", f"run {' '.join([*many[:3], 'photographs'])}", "run photographs -o mine",
    ):  # fmt: skip
        assert main([*words.split(), "--model", "jpeg:80"]) == 0
    names = [place.removeprefix("out/jpeg-80/") for place in places]
    assert names[:8] == [
        *["reconstruct-photographs"] * 3, "reconstruct-b-photographs", "reconstruct-photographs-inner", "photographs",
        "photographs-seed-7-items-1", "table3-of-b",
    ]  # fmt: skip
    assert all(name.startswith("code-usage+procedural-images+procedural-assets+1-more-") for name in names[8:10])
    assert names[8] != names[9]
    assert names[10] == "mine"


def test_tuned_models_are_called_as_their_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for run in ("runs/tune", "runs/tune2", "tune"):
        shutil.copytree(BUNDLED / "nano", tmp_path / run / "model")
    assert [file_name(f"{run}/model/") for run in ("runs/tune", "runs/tune2", "tune")] == [
        "runs-tune", "runs-tune2", "tune"
    ]  # fmt: skip
    assert file_name("runs/tune/../tune/model") == file_name(str(tmp_path / "runs/tune/model")) == "runs-tune"
    assert file_name(".") == tmp_path.name
    assert load("runs/tune2/model").name == "tune2"


def test_unreadable_files_are_listed_and_the_exit_code_says_so(photographs, tmp_path, capsys):
    (photographs / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    out = tmp_path / "out"
    assert main(["reconstruct", str(photographs), "--model", "jpeg:80", "-o", str(out)]) == 1
    (row,) = result(out)["rows"]
    assert (row["status"], row["failed"][0]["key"]) == ("partial", "broken.png")
    assert "broken.png" in capsys.readouterr().err


def test_what_a_model_cannot_take_fails_its_row_and_the_others_go_on(photographs, tmp_path):
    write_video(Video(np.zeros((4, 32, 32, 3), np.uint8)), photographs / "video.mp4")
    out = tmp_path / "out"
    assert main(["reconstruct", str(photographs), "--model", "jpeg:80", "-o", str(out)]) == 1
    rows = {row["task"]: row for row in result(out)["rows"]}
    assert {name: row["status"] for name, row in rows.items()} == {
        "local-images": "complete",
        "local-videos": "failed",
    }
    assert "JPEG stores images" in rows["local-videos"]["why"]


def test_a_task_by_its_name_and_its_first_items(tmp_path, monkeypatch):
    task = tasks.TASKS["coco-256"]
    root = tmp_path / "data" / task.folder
    root.mkdir(parents=True)
    for number in range(4):
        write_image(Image(make_image(7, number, 40, 70).frames[0]), root / f"{number}.png")
    arguments = ["run", "coco-256", "--data", str(tmp_path / "data"), "--model", "jpeg:80", "-o", str(tmp_path / "out")]
    assert main([*arguments, "--items", "2"]) == 1  # a part of a data set is no row of a table
    (row,) = result(tmp_path / "out")["rows"]
    assert (row["status"], row["items"]["measured"], row["items"]["full"]) == ("partial", 2, 5000)
    assert (row["protocol"]["crop"], row["protocol"]["size"]) == ("adm", "256 pixels")
    assert "rfid" in row["skipped"]
    assert "run `atoken fetch efficientnet-lite0`" in row["skipped"]["Fréchet (EfficientNet-Lite0)"]


def test_a_wrong_name_lists_the_right_ones(tmp_path, capsys):
    assert main(["run", "nonsense", "--model", "jpeg:80", "-o", str(tmp_path)]) == 1
    assert "imagenet-256" in capsys.readouterr().err
    assert main(["run", "photographs", "--model", "nonsense:80", "-o", str(tmp_path)]) == 1
    assert "jpeg" in capsys.readouterr().err
    assert main(["reconstruct", str(tmp_path / "none"), "--model", "jpeg:80"]) == 1
    with pytest.raises(SystemExit) as stop:
        main(["nonsense"])
    assert stop.value.code == 2


def test_table3_without_data_has_a_row_for_each_of_its_tasks_that_says_so(tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["table3", "--data", str(tmp_path), "--model", "jpeg:80", "-o", str(out)]) == 1
    rows = result(out)["rows"]
    assert [row["task"] for row in rows] == [
        "imagenet-256", "imagenet-zero-shot-256", "tokenbench", "msr-vtt-retrieval", "toys4k", "toys4k-zero-shot",
    ]  # fmt: skip
    assert {row["status"] for row in rows} == {"failed"}
    assert all(str(tmp_path) in row["why"] for row in rows)
    assert (out / "report.md").is_file()


def test_compare_and_report_of_two_models(photographs, tmp_path, capsys):
    for quality in (50, 90):
        out = tmp_path / str(quality)
        assert main(["reconstruct", str(photographs), "--model", f"jpeg:{quality}", "-o", str(out)]) == 0
    files = [str(tmp_path / str(quality) / "result.json") for quality in (50, 90)]
    capsys.readouterr()
    assert main(["compare", *files]) == 0
    table = capsys.readouterr().out
    assert "JPEG, quality 50" in table
    assert "JPEG, quality 90" in table
    assert main(["report", *files, "-o", str(tmp_path / "both.html")]) == 0
    assert (tmp_path / "both.html").is_file()
    found = json.loads(Path(files[1]).read_text())
    found["rows"][0]["protocol"]["filter"] = "nearest"
    Path(files[1]).write_text(json.dumps(found))
    assert main(["compare", *files]) == 1
    assert "filter is bicubic (Pillow) and nearest" in capsys.readouterr().err


def test_generation_of_two_folders(photographs, tmp_path):
    other = tmp_path / "samples"
    other.mkdir()
    for number in range(5):
        write_image(Image(make_image(8, number, 48, 64).frames[0]), other / f"{number}.png")
        write_image(Image(make_image(7, number, 48, 64).frames[0]), photographs / f"{number}.png")
    out = tmp_path / "out"
    arguments = ["generation", str(other), "--reference", str(photographs), "--network", "nano", "-o", str(out)]
    assert main(arguments) == 0
    (row,) = result(out)["rows"]
    names = {name.partition(" (")[0] for name in row["numbers"]}
    assert {"Fréchet", "spatial Fréchet", "precision", "recall"} <= names
    assert "gfid" not in names  # which is a name of Inception's number
    assert row["protocol"]["items"] == 5
    assert main([*arguments[:-4], "--network", "nonsense"]) == 1


def test_rate_of_a_folder(photographs, tmp_path, capsys, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setitem(rate.CODECS, "image", (*rate.CODECS["image"][:2], (30, 80)))
    out = tmp_path / "out"
    assert main(["rate", str(photographs), "--model", "pca:12", "-o", str(out)]) == 0
    assert "PCA, 12 numbers a patch" in capsys.readouterr().out
    assert "psnr by bits per pixel" in (out / "report.html").read_text()
    (photographs / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    assert main(["rate", str(photographs), "--model", "jpeg:50", "-o", str(out), "--json"]) == 1
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [one["key"] for one in rows[0]["failed"]] == ["broken.png"]


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("jpeg:high", "'high' is not a quality"),
        ("h264:99", "CRF from 0 to 51"),
        ("torchscript:folder", "FOLDER@FRAMESxROWSxCOLUMNS"),
        ("torchscript:folder@4x8x8", "--trust"),
        ("diffusers:none", "none"),
        ("nobody", "There is no model 'nobody'"),
        ("https://huggingface.co/owner/name", "it is an address, and nothing is fetched"),
        ("so400m/", "There is no folder so400m/"),
        ("missing.pt", "There is no weight file missing.pt"),
    ],
)
def test_what_is_no_model_is_one_sentence(photographs, tmp_path, capsys, model, words):
    assert main(["reconstruct", str(photographs), "--model", model, "-o", str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    "words", ["reconstruct URL", "rate URL", "generation URL --reference .", "compare URL", "report a.json URL"]
)
def test_an_address_is_said_to_be_one(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(words.replace("URL", "https://example.org/a").split()) == 1
    address = "https://example.org/a: it is an address, and nothing is fetched"
    assert capsys.readouterr().err == f"eval: Cannot read {address}; download the file first.\n"
    assert list(tmp_path.iterdir()) == []


def test_json_is_the_result_file(photographs, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["reconstruct", str(photographs), "--model", "jpeg:80", "-o", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == result(out)


def test_every_task_is_whole():
    """Whatever a row names exists, and names fit folders."""
    for name, task in (tasks.TASKS | {task.name: task for task in tasks.LOCAL.values()}).items():
        assert task.name == name
        assert name.replace("-", "").isalnum()
        assert ("zero-shot" in task.metrics) == (task.templates is not None) == ("zero-shot" in name)
        assert (task.make == "embed") == bool({"zero-shot", "retrieval", "choice", "linear probe"} & set(task.metrics))
        assert set(task.prepare.record()) == {
            "crop", "filter", "size", "frames", "fps", "cameras", "background",
        }  # fmt: skip


def test_ranks_write_one_result(photographs, tmp_path, monkeypatch):
    """Rank 1 of 2 writes shards and no result; rank 0 merges them."""
    small = tasks.LOCAL["image"].__class__(**{**vars(tasks.LOCAL["image"]), "shard": 1})
    monkeypatch.setitem(commands.LOCAL, "image", small)
    results = []
    for world in (1, 2):
        out = tmp_path / str(world)
        for rank in reversed(range(world)):
            monkeypatch.setenv("RANK", str(rank))
            monkeypatch.setenv("WORLD_SIZE", str(world))
            assert main(["reconstruct", str(photographs), "--model", "jpeg:80", "-o", str(out)]) == 0
            assert (out / "result.json").exists() == (rank == 0)
        found = result(out)
        assert found["run"]["ranks"] == world
        results.append(found["rows"])
    assert results[0] == results[1]


HELP = """
import json, sys
from eval.command import main
try:
    main(sys.argv[1:])
except SystemExit as stop:
    print(json.dumps([stop.code, [name for name in ("torch", "numpy", "transformers", "PIL") if name in sys.modules]]))
"""


def test_help_loads_nothing_heavy():
    for arguments in (["--help"], ["reconstruct", "--help"]):
        done = subprocess.run(
            [sys.executable, "-c", HELP, *arguments], cwd=ROOT, capture_output=True, text=True, check=True
        )
        assert json.loads(done.stdout.splitlines()[-1]) == [0, []]


@pytest.mark.parametrize("threads", [None, 2])
def test_the_module_runs_on_one_thread_unless_the_user_says_otherwise(photographs, tmp_path, threads):
    arguments = ["reconstruct", str(photographs), "--model", "jpeg:80", "-o", str(tmp_path / "out")]
    of_the_suite = ("RANK", "WORLD_SIZE", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    environment = {name: value for name, value in os.environ.items() if name not in of_the_suite}
    if threads:
        environment["OMP_NUM_THREADS"] = str(threads)
    command = [sys.executable, "-m", "eval", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert result(tmp_path / "out")["run"]["threads"] == (threads or 1)
    assert "Traceback" not in done.stderr


def test_all_commands_are_there():
    (choices,) = [action.choices for action in parser()._actions if action.dest == "command"]
    assert all(hasattr(commands, name) for name in choices)


def test_probes_are_one_table(monkeypatch, capsys):
    for name, few in {"EACH": 4, "SIDE": 48, "LEARNED": 8, "TESTED": 4}.items():
        monkeypatch.setattr(table, name, few)
    assert main(["probes", "--json", "--device", "cpu"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["pooled"]["learned"], found["pooled"]["tested"]) == (144, 48)
    assert set(found["dense"]) == {"features", "latents", "pixels"}
    bounds = [{number for name, number in one.items() if "ceiling" in name} for one in found["dense"].values()]
    assert bounds[0] == bounds[1] == bounds[2]  # what a grid of tokens allows does not depend on what is read
    lines = table.markdown(found).splitlines()
    assert {line.count("|") for line in lines[:3]} == {6}
    assert {line.count("|") for line in lines[4:]} == {7}
