"""Tables 9 and 10 by lmms-eval, which is a script here that writes what it would write, or fails as it would."""

import json
import sys

import pytest

from eval import lmms
from eval.command import main
from eval.lmms import TABLES, VERSION

SCRIPT = """#!{python}
import json, sys
from pathlib import Path
if "-c" in sys.argv:
    print("{version}")
    sys.exit()
options = dict(zip(sys.argv[1:], sys.argv[2:]))
task = options["--tasks"]
if task == "ai2d":
    print("Traceback:\\n  raise it\\nhub.ConnectionError: Couldn't reach the hub\\n", file=sys.stderr)
    print("tenacity.RetryError: RetryError[<Future>]\\nsome Error during evaluation", file=sys.stderr)
    sys.exit(1)
found = {{"results": {{task: {{"alias": task, "exact,none": 0.25, "exact_stderr,none": "N/A"}}}},
         "n-samples": {{task: {{"original": 8, "effective": int(options.get("--limit", 8))}}}},
         "versions": {{task: 1.0}}, "task_hashes": {{task: "abc"}}, "asked": sys.argv[1:]}}
folder = Path(options["--output_path"]) / "model"
folder.mkdir(parents=True, exist_ok=True)
(folder / "20261201_results.json").write_text(json.dumps(found))
"""


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    path = tmp_path / "python"
    path.write_text(SCRIPT.format(python=sys.executable, version=VERSION))
    path.chmod(0o755)
    monkeypatch.setattr(lmms, "PYTHON", path)


def rows(folder):
    return {row["task"]: row for row in json.loads((folder / "result.json").read_text())["rows"]}


def test_each_task_has_a_row_and_one_without_a_number_says_why(stand_in, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["table9", "--model", "vl:some/model", "-o", str(out)]) == 1
    found = rows(out)
    assert [*found] == [f"table9-{column.task}" for column in TABLES["table9"]]
    failed = found.pop("table9-ai2d")
    assert (failed["status"], failed["numbers"]) == ("failed", {})
    assert "lmms-eval gave no number: hub.ConnectionError: Couldn't reach the hub.\n" in capsys.readouterr().err
    assert {row["status"] for row in found.values()} == {"complete"}
    assert {row["numbers"]["exact"]["value"] for row in found.values()} == {0.25}
    asked = json.loads((out / "realworldqa/model/20261201_results.json").read_text())["asked"]
    assert asked[asked.index("--model") + 1 : asked.index("--tasks")] == [
        "atoken_vl", "--model_args", "pretrained=some/model",
    ]  # fmt: skip


def test_some_items_are_a_partial_row(stand_in, tmp_path):
    assert main(["table10", "--items", "3", "-o", str(tmp_path / "out")]) == 1
    for row in rows(tmp_path / "out").values():
        assert (row["status"], row["modality"], row["items"]["measured"]) == ("partial", "video", 3)


def test_without_lmms_eval_every_row_names_the_command(tmp_path, monkeypatch):
    monkeypatch.setattr(lmms, "PYTHON", tmp_path / "nowhere")
    monkeypatch.setattr(lmms.sys, "executable", str(tmp_path / "nowhere"))
    assert main(["table9", "-o", str(tmp_path / "out")]) == 1
    found = rows(tmp_path / "out")
    assert all("run `make lmms`" in row["why"] for row in found.values())
    assert "OPENAI_API_KEY" in found["table9-mathvista_testmini_format"]["why"]
