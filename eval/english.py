"""Whether a language model kept its English when it learned to see: perplexity of texts that no training read.

Beside that of the language model that it was made from, where its configuration names that.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pydoc_data.topics import topics
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from eval.code import ROOT, code_version
from eval.models.answers import VisionLanguage
from eval.prepare import Preparation, evenly
from eval.protocol import EvalProtocol, data_hash, result_row, settings

NAME = "english"
WINDOW = 1024  # tokens that are read at once; those of the next window do not see them
PAGES = 20  # of Python's documentation, evenly by name
_LEFT_OUT = re.compile(r"^(```.*?^```|[#|<].*?$|- \*\*.*?$)", re.DOTALL | re.MULTILINE)


def texts() -> dict[str, list[str]]:
    """The prose of README, and pages of the documentation that Python brings along."""
    names = sorted(topics)
    pages = [topics[names[number]] for number in evenly(len(names), PAGES)]
    return {"README": [prose((ROOT / "README.md").read_text(encoding="utf-8"))], "Python's documentation": pages}


def prose(markdown: str) -> str:
    """A page without code, headings, tables and lines of HTML."""
    return re.sub(r"\n{3,}", "\n\n", _LEFT_OUT.sub("", markdown)).strip()


@torch.inference_mode()
def perplexity(language: Any, tokenizer: Any, pages: Sequence[str]) -> float:
    """The exponential of the mean loss of all tokens of some texts, but for the first of each window."""
    total, count = 0.0, 0
    for page in tqdm(pages, unit=" texts", delay=1, disable=None, leave=False):
        ids = tokenizer(page, add_special_tokens=False, return_tensors="pt", verbose=False)["input_ids"][0]
        for window in ids.to(language.device).split(WINDOW):
            if len(window) > 1:
                logits = language(input_ids=window[None], use_cache=False).logits[0, :-1].float()
                total += float(cross_entropy(logits, window[1:], reduction="sum").double())
                count += len(window) - 1
    return math.exp(total / count)


def measured(model: VisionLanguage) -> Iterator[dict[str, Any]]:
    """A row of the model, with ratios to that of the language model that it was made from; then that one's.

    Raises: AtokenError.
    """
    from transformers import AutoModelForCausalLM

    from mllm.sources import language_folder

    chat, source = model.chat, model.chat.model.config.language_source
    found = {name: perplexity(chat.model.language_model, chat.processor.tokenizer, of) for name, of in texts().items()}
    numbers = {f"perplexity, {name}": value for name, value in found.items()}
    if source is None:
        yield _row(model.name, model.record, numbers, {"ratios": "the model names no language model it was made from"})
        return
    plain = AutoModelForCausalLM.from_pretrained(language_folder(source), dtype=chat.model.dtype).to(chat.model.device)
    before = {name: perplexity(plain, chat.processor.tokenizer, of) for name, of in texts().items()}
    yield _row(model.name, model.record, numbers | {f"ratio, {name}": found[name] / before[name] for name in found})
    yield _row(
        source, {"dtype": model.record["dtype"]}, {f"perplexity, {name}": value for name, value in before.items()}
    )


def _row(
    name: str, record: Mapping[str, str], numbers: Mapping[str, float], skipped: Mapping[str, str] | None = None
) -> dict[str, Any]:
    pages = [page for of in texts().values() for page in of]
    protocol = EvalProtocol(
        task=NAME, data=data_hash(pages), items=len(pages), templates="none", code=code_version(),
        metrics={"perplexity": {"window": f"{WINDOW} tokens of the model's own tokenizer"}}, **Preparation().record(),
        **settings(record),
    )  # fmt: skip
    counts = {"planned": len(pages), "measured": len(pages), "full": len(pages)}
    return result_row(
        NAME, name, record, "text", protocol, {key: ("perplexity", value) for key, value in numbers.items()},
        skipped=dict(skipped or {}), items=counts,
    )  # fmt: skip
