"""Which columns of a table hold media, captions, labels: those that are named, or usual names with the right types."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atoken.errors import MediaError

MEDIA = ("glb", "mesh", "mp4", "video", "image", "jpg", "jpeg", "png", "webp", "bytes", "img")
PATHS = (*MEDIA, "path", "file_path", "image_path", "video_path", "file_name", "filename", "file")
CAPTIONS = ("caption", "captions", "text", "txt")
LABELS = ("label", "labels", "cls", "class", "fine_label")


@dataclass(frozen=True)
class Columns:
    """Names of columns; ``record``: those of a sample's record, after the names that they have there."""

    media: str
    captions: str | None
    record: tuple[tuple[str, str], ...]

    @property
    def all(self) -> list[str]:
        """Each column that is read, once."""
        found = [self.media, self.captions, *(column for _, column in self.record)]
        return [column for column in dict.fromkeys(found) if column is not None]


def chosen(schema: Any, path: Path, media: str | None, captions: str | None, fields: Iterable[str]) -> Columns:
    """The columns to read of the table ``path``, as ``TableSource`` says. Raises: MediaError (there is none)."""
    found = _column(schema, None, MEDIA, _is_media, path) or _column(schema, None, PATHS, _is_text, path)
    if media is not None:
        found = _column(schema, media, (), lambda of: _is_media(of) or _is_text(of), path)
    if found is None:
        names = ", ".join(schema.names)
        raise MediaError(
            f"The table {path} has no column of media bytes or paths with a usual name; name one of: {names}."
        )
    label = _column(schema, None, (*LABELS, *class_names(schema)), _is_label, path)
    record = {} if label is None else {"label": label}
    record |= {field: field for field in fields if field not in record and _column(schema, field, (), _is_label, path)}
    return Columns(found, _column(schema, captions, CAPTIONS, _is_caption, path), tuple(record.items()))


def _column(
    schema: Any, name: str | None, usual: tuple[str, ...], fits: Callable[[Any], bool], path: Path
) -> str | None:
    """The column to read: the named one, or the first with a usual name and the right type."""
    fitting = {field.name for field in schema if fits(field.type)}
    if name is not None and name not in fitting:
        raise MediaError(
            f"The table {path} has no column {name!r} of the right type; those that have it: {sorted(fitting)}."
        )
    return name or next((known for known in usual if known in fitting), None)


def _is_media(of: Any) -> bool:
    import pyarrow.types as is_a

    if is_a.is_struct(of) and of.get_field_index("bytes") >= 0:
        of = of.field("bytes").type
    return bool(is_a.is_binary(of) or is_a.is_large_binary(of) or is_a.is_binary_view(of))


def _is_caption(of: Any) -> bool:
    import pyarrow.types as is_a

    if is_a.is_list(of) or is_a.is_large_list(of) or is_a.is_dictionary(of):
        of = of.value_type
    return _is_text(of)


def _is_text(of: Any) -> bool:
    import pyarrow.types as is_a

    return bool(is_a.is_string(of) or is_a.is_large_string(of) or is_a.is_string_view(of))


def _is_label(of: Any) -> bool:
    import pyarrow.types as is_a

    if is_a.is_dictionary(of):
        of = of.value_type
    return _is_text(of) or bool(is_a.is_integer(of))


def class_names(schema: Any) -> Mapping[str, list[str]]:
    """The names of classes by column that Hugging Face's datasets state; {} where they state none, or nonsense."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {
            column: [str(name) for name in feature["names"]]
            for column, feature in features.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" and "names" in feature
        }
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError):  # whoever made the table wrote it
        return {}
