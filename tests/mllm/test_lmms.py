"""The model in lmms-eval, with stand-ins for what lmms-eval itself has; ``make lmms`` runs it with the real one."""

import importlib
import json
import sys
import types
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from PIL import Image as Pil

from atoken import lmms
from atoken.errors import AtokenError
from eval.models.answers import MOST_TOKENS
from eval.sources.questions import QUESTIONS
from eval.sources.synthetic import SEED
from mllm.assembly import assemble
from mllm.chat import Chat
from mllm.conversation import MediaItem
from mllm.questions.synthetic import SyntheticQuestions
from tests.mllm.tiny_language import write_language, write_tower

FOLDER = Path(__file__).parents[2] / "mllm/lmms_tasks"
NOISE = np.random.default_rng(0).integers(0, 256, (8, 32, 48, 3), dtype=np.uint8)


class Base:
    """Of lmms-eval's models, what counts here: documents are found by task and split."""

    def __init__(self):
        self.task_dict = {}


class Messages:
    """Messages with attributes, as lmms-eval checks them."""

    def __init__(self, messages):
        self.messages = [
            SimpleNamespace(role=one["role"], content=[SimpleNamespace(**piece) for piece in one["content"]])
            for one in messages
        ]


def module(name, **members):
    found = types.ModuleType(name)
    vars(found).update(members)
    return found


@pytest.fixture
def wrapper(monkeypatch):
    """``mllm.lmms``, and lmms-eval's modules in its eyes."""
    members = {
        "lmms_eval": {}, "lmms_eval.api": {}, "lmms_eval.api.model": {"lmms": Base},
        "lmms_eval.models": {}, "lmms_eval.models.registry_v2": {"ModelManifest": lambda *paths: paths},
        "lmms_eval.protocol": {"ChatMessages": Messages},
    }  # fmt: skip
    for name, of in members.items():
        monkeypatch.setitem(sys.modules, name, module(name, **of))
    yield importlib.import_module("mllm.lmms")
    sys.modules.pop("mllm.lmms")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lmms")
    parts = write_language(folder / "language"), write_tower(folder / "tower")
    model, processor = assemble(*parts, frames=4, slow_frames=2, video_pixels=48 * 48, image_pixels=64 * 64)
    model.save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    Pil.fromarray(NOISE[0]).save(folder / "noise.png")
    return folder


def request(*arguments):
    return SimpleNamespace(args=arguments, task_name="task", doc_id=0)


def test_both_ways_give_what_chat_answers(wrapper, folder):
    path = folder / "noise.png"
    chat = Chat.load(folder / "model", device="cpu")
    expected = chat.ask("What is it?", MediaItem("image", path), MediaItem("video", NOISE), max_new_tokens=6).text
    assert expected
    options = {"max_new_tokens": 6, "temperature": 0, "top_p": 0.5, "until": []}
    simple = wrapper.Simple(str(folder / "model"), device="cpu", batch_size=4)
    simple.task_dict = {"task": {"test": [{"media": [Pil.open(path), NOISE]}]}}
    asked = "What is it?", options, lambda document: document["media"], 0, "task", "test"
    assert simple.generate_until([request(*asked)]) == [expected]
    assert simple.generate_until([request(*asked[:1], options | {"until": [expected[1:]]}, *asked[2:])]) == [
        expected[0]
    ]
    simple.clean()
    assert simple.generate_until([request(*asked)]) == [expected]
    content = [
        {"type": "image", "url": str(path)},
        {"type": "video", "url": [*NOISE]},
        {"type": "text", "text": asked[0]},
    ]
    talking = wrapper.WithMessages(str(folder / "model"), device="cpu")
    talking.task_dict = {"task": {"test": [[{"role": "user", "content": content}]]}}
    assert talking.generate_until([request("", lambda messages: messages, options, 0, "task", "test")]) == [expected]


def test_what_it_cannot_do_is_said(wrapper, folder):
    with pytest.raises(AtokenError, match="There is no speed"):
        wrapper.Simple(str(folder / "model"), speed=2)
    model = wrapper.WithMessages(str(folder / "model"), device="cpu")
    model.task_dict = {"task": {"test": [[{"role": "user", "content": [{"type": "audio", "url": "a.wav"}]}]]}}
    with pytest.raises(AtokenError, match="hears nothing"):
        model.generate_until([request("", lambda messages: messages, {}, 0, "task", "test")])
    for ask in (model.loglikelihood, model.generate_until_multi_round):
        with pytest.raises(AtokenError, match="choose a task"):
            ask([])


def test_the_entry_point_names_both_classes_or_nothing(wrapper, monkeypatch):
    ((name, *paths),) = lmms.models()
    assert name == lmms.MODEL
    for path in paths:
        assert getattr(wrapper, path.removeprefix("mllm.lmms.")).is_simple == path.endswith("Simple")
    monkeypatch.setattr(lmms, "find_spec", lambda name: None)
    assert lmms.models() == []


def test_documents_are_the_questions_of_the_seed(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", module("datasets", Dataset=SimpleNamespace(from_list=list)))
    utils = importlib.import_module("mllm.lmms_tasks.utils")
    row = {"modality": "video", "samples": 5, "seed": 1}
    documents = utils.videos([{"modality": "image", "samples": 9, "seed": 1}, row])
    asked = SyntheticQuestions(**row)
    assert [document["question"] for document in documents] == [asked[n].messages[0].text for n in range(5)]
    (piece, text) = utils.messages(documents[2])[0]["content"]
    np.testing.assert_array_equal(piece["url"], asked[2].media[0].source())
    assert text == {"type": "text", "text": asked[2].messages[0].text}
    assert utils.right(documents[2], [documents[2]["answer"].upper()]) == {"accuracy": 1}
    assert utils.right(documents[2], ["something else"]) == {"accuracy": 0}


class Loader(yaml.SafeLoader):
    """Takes ``!function`` as a text."""


Loader.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))


@pytest.mark.parametrize("task", ["images", "videos", "assets"])
def test_tasks_ask_as_the_harness_does(task):
    found = yaml.load((FOLDER / f"atoken_vqa_{task}.yaml").read_text(), Loader)
    shared = yaml.load((FOLDER / found["include"]).read_text(), Loader)
    assert found["process_docs"] == f"utils.{task}"
    assert shared["generation_kwargs"]["max_new_tokens"] == MOST_TOKENS
    path = FOLDER.parents[1] / shared["dataset_kwargs"]["data_files"]["test"]
    lines = path.read_text().splitlines()
    row = next(row for row in map(json.loads, lines) if f"{row['modality']}s" == task)
    assert (row["samples"], row["seed"]) == (QUESTIONS, SEED)
