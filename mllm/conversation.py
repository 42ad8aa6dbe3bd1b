"""Conversations about media, and the two forms that people have them in: LLaVA's, and ``messages`` of Hugging Face.

Either way each media item stands where its slot is. In LLaVA's texts ``<image>``, ``<video>`` and ``<asset>`` are the
slots; a line break around a slot belongs to the slot, since a chat template writes its own. In ``messages`` the slots
are entries of ``content``, and ``<image>`` in a text is text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from atoken.errors import AtokenError

ROLES = {"human": "user", "gpt": "assistant", "user": "user", "assistant": "assistant", "system": "system"}
MODALITY_OF = {"image": "image", "video": "video", "asset": "asset", "mesh": "asset"}  # of the type of an entry
LISTS = {"images": "image", "videos": "video", "assets": "asset", "meshes": "asset"}  # of a record with messages
_SLOT = re.compile(r"\n?<(image|video|asset)>\n?")
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+:/", re.IGNORECASE)  # but not C:/


@dataclass(frozen=True)
class Text:
    """A piece of text, as it is: nothing in it stands for media."""

    text: str


@dataclass(frozen=True)
class MediaItem:
    """``modality``: image, video or asset.

    source: a path, a PIL image, a uint8 array ([T,] H, W, 3), a list of frames, a Mesh, inputs of the model that were
    kept, or a function without arguments that makes one of these. options: what else is said of it, such as ``frames``;
    the processor refuses what it does not know.
    """

    modality: str
    source: Any
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Message:
    """What one side says; ``role``: system, user or assistant."""

    role: str
    content: tuple[Text | MediaItem, ...]

    @property
    def text(self) -> str:
        """Its texts, joined."""
        return "".join(piece.text for piece in self.content if isinstance(piece, Text))


@dataclass(frozen=True)
class Conversation:
    """``key`` names it in errors. Only users' messages, and the system's, hold media."""

    key: str
    messages: tuple[Message, ...]

    @property
    def media(self) -> tuple[MediaItem, ...]:
        """All media, in the order of their slots."""
        return tuple(piece for message in self.messages for piece in message.content if isinstance(piece, MediaItem))


def read(record: Mapping[str, Any], key: str, folder: str | Path = "") -> Conversation:
    """A record of a data set in either form; ``folder``: what paths in it are relative to.

    Raises: AtokenError (a role or type that is unknown, slots and media that do not match, texts that are none).
    """
    if not isinstance(record, Mapping) or ("conversations" in record) == ("messages" in record):
        raise AtokenError(f"{key} must be a table with either conversations (LLaVA) or messages (Hugging Face).")
    return (from_llava if "conversations" in record else from_messages)(record, key, folder)


def from_llava(record: Mapping[str, Any], key: str, folder: str | Path = "") -> Conversation:
    """``{"image": "a.jpg", "conversations": [{"from": "human", "value": "<image>\\nWhat is it?"}, ...]}``.

    ``image``, ``video`` and ``asset`` are a path or a list of them. ``<image>`` stands for a video or an asset, too,
    where a record has no image; ``role`` and ``content`` are names of ``from`` and ``value``. Raises: AtokenError.
    """
    waiting = {name: iter(_listed(record.get(name))) for name in ("image", "video", "asset")}
    has_images = bool(_listed(record.get("image")))

    def filled(text: str, role: str) -> Iterator[Text | MediaItem]:
        for number, piece in enumerate(_SLOT.split(text)):
            if number % 2 == 0:
                yield from [Text(piece)] if piece else []
                continue
            names = (piece,) if piece != "image" or has_images else ("video", "asset")
            found = next(((name, one) for name in names for one in waiting[name]), None)
            if role == "assistant" or found is None:
                raise AtokenError(f"{key} has a slot <{piece}> {_why(role)}.")
            yield MediaItem(found[0], _resolved(found[1], folder))

    messages = []
    for turn in _turns(record["conversations"], key):
        role, text = (turn.get(one, turn.get(other)) for one, other in (("from", "role"), ("value", "content")))
        role = _role(role, key)
        messages.append(Message(role, tuple(filled(_text(text, key), role))))
    _check_used(waiting, key)
    return Conversation(key, tuple(messages))


def from_messages(
    record: Mapping[str, Any] | Sequence[Mapping[str, Any]], key: str = "the conversation", folder: str | Path = ""
) -> Conversation:
    """``[{"role": "user", "content": [{"type": "image", "path": "a.jpg"}, {"type": "text", "text": "What is it?"}]}]``.

    Or a record with such ``messages``. Types are text, image, video, and asset or mesh; the source stands under the
    name of the type, or under ``path`` or ``url``, or else is the next of the record's ``images``, ``videos`` or
    ``assets``. Content may be a text alone. Raises: AtokenError.
    """
    record = record if isinstance(record, Mapping) else {"messages": record}
    lists: dict[str, list[Any]] = {}
    for name, modality in LISTS.items():
        lists.setdefault(modality, []).extend(_listed(record.get(name)))
    waiting = {modality: iter(found) for modality, found in lists.items()}

    def read_entry(entry: Any, role: str) -> Text | MediaItem:
        entry = {"type": "text", "text": entry} if isinstance(entry, str) else entry
        given = entry.get("type") if isinstance(entry, Mapping) else None
        if given == "text":
            return Text(_text(entry.get("text"), key))
        if given not in MODALITY_OF:
            raise AtokenError(f"{key} has content of the type {given!r}; there are text, {', '.join(MODALITY_OF)}.")
        names, modality = (given, "path", "url"), MODALITY_OF[given]
        source = next((entry[name] for name in names if entry.get(name) is not None), None)
        source = next(waiting[modality], None) if source is None else source
        if role == "assistant" or source is None:
            raise AtokenError(f"{key} has a slot for {given} {_why(role)}.")
        options = {name: value for name, value in entry.items() if name not in (*names, "type") and value is not None}
        return MediaItem(modality, _resolved(source, folder), options)

    messages = []
    for turn in _turns(record["messages"], key):
        role, content = _role(turn.get("role"), key), turn.get("content")
        entries = [content] if isinstance(content, str) else content
        if not isinstance(entries, Sequence):
            raise AtokenError(f"{key} has a message whose content is neither a text nor a list.")
        messages.append(Message(role, tuple(read_entry(entry, role) for entry in entries)))
    _check_used(waiting, key)
    return Conversation(key, tuple(messages))


def _why(role: str) -> str:
    return "in an answer" if role == "assistant" else "with no media left for it; slots and media must match"


def _check_used(waiting: Mapping[str, Iterator[Any]], key: str) -> None:
    left = {modality: sum(1 for _ in rest) for modality, rest in waiting.items()}
    if any(left.values()):
        found = " and ".join(f"{count} {modality}{'s' * (count > 1)}" for modality, count in left.items() if count)
        raise AtokenError(f"{key} has {found} without a slot; slots and media must match.")


def _turns(turns: Any, key: str) -> Sequence[Mapping[str, Any]]:
    if not isinstance(turns, Sequence) or not turns or not all(isinstance(turn, Mapping) for turn in turns):
        raise AtokenError(f"{key} has no messages; they are a list of tables, at least one.")
    return turns


def _role(role: Any, key: str) -> str:
    if role not in ROLES:
        raise AtokenError(f"{key} has a message of the role {role!r}; there are {', '.join(ROLES)}.")
    return ROLES[role]


def _text(text: Any, key: str) -> str:
    if not isinstance(text, str):
        raise AtokenError(f"{key} has a message whose text is a {type(text).__name__}.")
    return text


def _listed(found: Any) -> list[Any]:
    """None, one or a list of them, as a list."""
    return [] if found is None else list(found) if isinstance(found, list | tuple) else [found]


def _resolved(source: Any, folder: str | Path) -> Any:
    """A relative path in ``folder``, or each of a list of frames; an address and what is no path as it is."""
    if isinstance(source, list):
        return [_resolved(frame, folder) for frame in source]
    return Path(folder) / source if isinstance(source, str) and not _ADDRESS.match(source) else source
