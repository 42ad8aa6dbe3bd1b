"""ADM's ``.npz`` files: samples (``arr_0``), labels (``arr_1``), statistics of features (``mu``, ``sigma``, ``_s``).

Arrays are read as plain bytes behind a checked header, block by block, and never unpickled. Formats: the evaluations
of guided-diffusion (Dhariwal and Nichol 2021); ``mu`` and ``sigma`` alone are also what pytorch-fid writes.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import IO

import numpy as np

from atoken.atomic import atomic_path
from atoken.errors import AtokenError, MediaError
from atoken.media.limits import DEFAULT_LIMITS
from atoken.metrics.frechet import Gaussian

ENDS = {"pooled": "", "spatial": "_s"}  # of the names of arrays, by kind of features
WIDEST = 16_384  # numbers of a feature, or classes
MOST_SAMPLES = 10_000_000
BLOCK = 64 << 20  # bytes that are read at a time


def holds(path: str | Path) -> set[str]:
    """The names of the arrays in a file. Raises: MediaError."""
    with _archive(Path(path)) as archive:
        return {name.removesuffix(".npy") for name in archive.namelist()}


def read_samples(path: str | Path) -> Iterator[np.ndarray]:
    """The images of ``arr_0``, (H, W, 3) uint8 one by one, in constant memory.

    Raises: MediaError where it is missing, damaged, ends early, or holds something else.
    """
    with _archive(Path(path)) as archive, _array(archive, "arr_0", path) as (file, shape, dtype):
        if dtype != np.uint8 or len(shape) != 4 or shape[3] != 3:
            raise MediaError(f"arr_0 of {path} must be uint8 of shape (N, H, W, 3), and is {dtype} {shape}.")
        DEFAULT_LIMITS.check_size(shape[1], shape[2], f"An image of {path}")
        for _ in range(shape[0]):
            yield np.frombuffer(_bytes(file, prod(shape[1:]), path), np.uint8).reshape(shape[1:])


def read_labels(path: str | Path) -> tuple[list[int], tuple[str, ...]]:
    """The label of each sample (``arr_1``), and the names of labels (``classes``), which files of others do not have.

    Raises: MediaError where labels are missing, or are not such.
    """
    with _archive(Path(path)) as archive:
        labels_N = _numbers(archive, "arr_1", path)
        names = _numbers(archive, "classes", path).tolist() if "classes.npy" in archive.namelist() else []
    labels = labels_N.tolist()
    if labels_N.dtype.kind != "i" or labels_N.ndim != 1 or not set(labels) <= set(range(len(names) or WIDEST)):
        raise MediaError(f"arr_1 of {path} is not a label for each sample.")
    return labels, tuple(map(str, names))


def read_statistics(path: str | Path, weights: str = "") -> dict[str, Gaussian]:
    """The moments in a file by kind of features: "pooled" and, where there are any, "spatial".

    weights: the checksum of the network that they are compared with; ``write_statistics`` stores that of its own.
    Raises: MediaError where they are missing or damaged, are not moments, or belong to another network.
    """
    with _archive(Path(path)) as archive:
        names = set(archive.namelist())
        if "weights.npy" in names and weights and (stored := str(_numbers(archive, "weights", path))) != weights:
            raise MediaError(
                f"The statistics in {path} are of the network {stored[:8]}…, not {weights[:8]}…: compute them again."
            )
        items = int(_numbers(archive, "items", path)) if "items.npy" in names else None
        found = {kind: end for kind, end in ENDS.items() if f"mu{end}.npy" in names or kind == "pooled"}
        moments = {}
        for kind, end in found.items():
            mean_D, covariance_DD = (_numbers(archive, f"{name}{end}", path) for name in ("mu", "sigma"))
            finite = mean_D.dtype.kind == covariance_DD.dtype.kind == "f" and np.isfinite(mean_D).all()
            if not finite or not np.isfinite(covariance_DD).all() or covariance_DD.shape != mean_D.shape * 2:
                raise MediaError(f"mu{end} and sigma{end} of {path} are not a finite mean (D,) and covariance (D, D).")
            covariance_DD = covariance_DD.astype(np.float64)
            moments[kind] = Gaussian(mean_D.astype(np.float64), (covariance_DD + covariance_DD.T) / 2, items)
        return moments


def write_statistics(path: str | Path, moments: Mapping[str, Gaussian], weights: str = "") -> None:
    """Write moments by kind of features atomically, in the format of ADM and pytorch-fid.

    weights: the checksum of the network, stored with the moments, as is the number of items. Raises: MediaError.
    """
    arrays: dict[str, np.ndarray] = {"weights": np.array(weights)} if weights else {}
    for kind, one in moments.items():
        arrays |= {f"mu{ENDS[kind]}": one.mean_D, f"sigma{ENDS[kind]}": one.covariance_DD}
        if one.items is not None:
            arrays["items"] = np.array(one.items)
    with atomic_path(path, MediaError) as temporary, temporary.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


def _numbers(archive: zipfile.ZipFile, name: str, path: str | Path) -> np.ndarray:
    """A whole array, no larger than statistics are, or labels."""
    most = MOST_SAMPLES if name == "arr_1" else WIDEST
    with _array(archive, name, path) as (file, shape, dtype):
        if len(shape) > 2 or any(side > most for side in shape) or dtype.kind not in "fiU" or dtype.itemsize > 1024:
            raise MediaError(f"{name} of {path} is not a statistic: {dtype} {shape}.")
        return np.frombuffer(_bytes(file, prod(shape) * dtype.itemsize, path), dtype).reshape(shape)


@contextmanager
def _archive(path: Path) -> Iterator[zipfile.ZipFile]:
    try:
        if not path.is_file():
            raise MediaError(f"Cannot read {path}: there is no such file.")
        with zipfile.ZipFile(path) as archive:
            yield archive
    except AtokenError:
        raise
    except OSError as error:
        raise MediaError(f"Cannot read {path}: {error.strerror or error}.") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        raise MediaError(f"Cannot read {path}: it is damaged, or not an .npz file ({error}).") from error


@contextmanager
def _array(
    archive: zipfile.ZipFile, name: str, path: str | Path
) -> Iterator[tuple[IO[bytes], tuple[int, ...], np.dtype]]:
    if f"{name}.npy" not in archive.namelist():
        raise MediaError(f"{path} has no array {name}; pass another file.")
    with archive.open(f"{name}.npy") as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(file)
        if dtype.hasobject or min(shape, default=0) < 0 or (fortran and len(shape) > 2):  # a covariance is symmetric
            raise MediaError(f"{name} of {path} is stored as Python objects or by columns: save a plain array instead.")
        yield file, shape, dtype


def _bytes(file: IO[bytes], count: int, path: str | Path) -> bytes:
    """Exactly so many bytes; memory is taken as they come, whatever the header says."""
    parts: list[bytes] = []
    while count and (part := file.read(min(count, BLOCK))):
        parts.append(part)
        count -= len(part)
    if count:
        raise MediaError(f"{path} ends in the middle of an array: copy or download it again.")
    return parts[0] if len(parts) == 1 else b"".join(parts)
