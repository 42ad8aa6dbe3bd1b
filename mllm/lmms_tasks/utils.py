"""Of the tasks here: generated questions, with the image, video or 3D asset that each is about."""

from __future__ import annotations

from functools import partial
from typing import Any

import datasets

from mllm.answers import is_right
from mllm.questions.synthetic import SyntheticQuestions


def _questions(asked: Any, modality: str) -> Any:
    """A document for each question of the row of a modality (modality, samples, seed)."""
    (row,) = (row for row in asked if row["modality"] == modality)
    found = SyntheticQuestions(**row)
    documents = []
    for number in range(len(found)):
        question, answer = (message.text for message in found[number].messages)
        documents.append({**row, "number": number, "question": question, "answer": answer})
    return datasets.Dataset.from_list(documents)


images, videos, assets = (partial(_questions, modality=modality) for modality in ("image", "video", "asset"))


def seen(document: dict[str, Any]) -> list[Any]:
    """Pixels (H, W, 3), frames (T, H, W, 3), or a mesh."""
    asked = SyntheticQuestions(document["modality"], document["samples"], document["seed"])
    (item,) = asked[document["number"]].media
    return [item.source()]


def question(document: dict[str, Any]) -> str:
    """The question of a document."""
    return str(document["question"])


def messages(document: dict[str, Any]) -> list[dict[str, Any]]:
    """The same as a message. lmms-eval knows no assets; what it passes as a video may be anything."""
    type_of = "image" if document["modality"] == "image" else "video"
    content = [{"type": type_of, "url": source} for source in seen(document)]
    return [{"role": "user", "content": [*content, {"type": "text", "text": question(document)}]}]


def right(document: dict[str, Any], results: list[str]) -> dict[str, float]:
    """1 for the right answer, or else 0."""
    return {"accuracy": float(is_right(results[0], document["answer"]))}
