"""Perplexity against a plain second implementation, texts that are there, and the rows of a run."""

import json
import math

import pytest
import torch
from transformers import AutoTokenizer, Qwen2ForCausalLM

from eval import english
from eval.command import main
from mllm.assembly import assemble
from tests.mllm.tiny_language import write_language, write_tower
from tests.tolerances import FP32


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A language model, a vision-language model around it with LoRA, and short texts."""
    folder = tmp_path_factory.mktemp("english")
    model, processor = assemble(write_language(folder / "language"), write_tower(folder / "tower"), lora={})
    with torch.no_grad():
        for name, weight in model.language_model.named_parameters():
            if "lora_B" in name:
                weight.fill_(0.05)
    model.save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    return folder


def test_it_is_the_exponential_of_the_mean_loss(folder, monkeypatch):
    monkeypatch.setattr(english, "WINDOW", 8)
    language, tokenizer = (
        Qwen2ForCausalLM.from_pretrained(folder / "language"),
        AutoTokenizer.from_pretrained(folder / "language"),
    )
    pages = ["What is in the image?", "Two, three."]
    losses = []
    for page in pages:
        ids = tokenizer(page)["input_ids"]
        for first in range(0, len(ids), 8):
            window = ids[first : first + 8]
            shares = language(torch.tensor([window])).logits[0].log_softmax(-1)
            losses += [-shares[place, token].item() for place, token in enumerate(window[1:])]
    assert english.perplexity(language, tokenizer, pages) == pytest.approx(
        math.exp(sum(losses) / len(losses)), rel=FP32
    )


def test_prose_is_what_is_left_of_a_page():
    page = "# Title\n\nOne line.\n\n```sh\nls\n# comment\n```\n\n| a | b |\n| - | - |\n\nAnother\nline.\n"
    assert english.prose(page) == "One line.\n\nAnother\nline."


def test_there_are_texts():
    found = english.texts()
    assert [len(pages) for pages in found.values()] == [1, english.PAGES]
    assert min(len(page) for pages in found.values() for page in pages) > 100


def test_a_run_has_a_row_for_the_model_and_one_for_what_it_was(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(english, "texts", lambda: {"README": ["Two, three, four."], "pages": ["It is red."]})
    assert main(["english", "--model", f"vl:{folder / 'model'}", "-o", str(tmp_path), "--device", "cpu"]) == 0
    one, other = json.loads((tmp_path / "result.json").read_text())["rows"]
    assert (one["task"], one["status"], other["model"]) == ("english", "complete", str(folder / "language"))
    numbers = {name: number["value"] for name, number in one["numbers"].items()}
    before = {name: number["value"] for name, number in other["numbers"].items()}
    for name in ("README", "pages"):
        ratio = numbers[f"perplexity, {name}"] / before[f"perplexity, {name}"]
        assert numbers[f"ratio, {name}"] == pytest.approx(ratio)
        assert ratio != 1
    assert main(["english", "--model", "jpeg:80", "-o", str(tmp_path)]) == 1
    assert "--model vl:vl-nano" in capsys.readouterr().err
