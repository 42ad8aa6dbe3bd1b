"""The engine of Ray: one machine or a cluster. Tasks read units, a pool of actors encodes them, tasks join shards.

Ray does again what a killed process did. A unit whose readers die ``DEATHS`` times is read item by item, as by
``LocalEngine``. All machines must see the store, the source and the model under the same paths.
"""

from __future__ import annotations

import logging
import os
import sys
import traceback
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, redirect_stdout, suppress
from functools import cached_property, lru_cache
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from atoken.errors import AtokenError, MissingExtraError, StoreError
from atoken.store import shards
from atoken.store.plan import Model, writing
from atoken.store.reading import DEATHS, Failure, Job, Read, killed, read_unit
from atoken.store.units import Report, encode_unit

if TYPE_CHECKING:
    from ray import ObjectRef

    from atoken.store.media import Decoded
    from atoken.tokenizer import Tokenizer

MOST_TASKS = 4096  # that read, each of them consecutive units: what the driver remembers of a task is bounded
JOINS = 16  # at once
HERE = "local"
Held = list[Any]  # of one reference to the job, which Ray does not look into


class RayEngine:
    """``actors`` encode, each on ``gpus`` GPUs or, for 0, on a core; all other cores read. Use ``with``.

    address: "local" starts Ray on this machine until the end, unless this process is connected already; "auto" is the
    cluster that this machine belongs to, and HOST:PORT another.
    """

    def __init__(self, address: str = HERE, actors: int = 1, gpus: float = 0.0) -> None:
        self._address, self._actors, self._gpus = address, actors, gpus
        self._stack = ExitStack()

    def __enter__(self) -> RayEngine:
        """Connect. Raises: MissingExtraError, AtokenError (Ray does not start, too few GPUs)."""
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # no warnings of its C++ on standard error
        try:
            import ray
            import ray.data
        except ImportError as error:
            raise MissingExtraError("ray", "ray", "--engine ray") from error
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # progress and failures are told by the driver
        with self._stack:
            # Ray prints what happens to its processes; standard output is for results.
            self._stack.enter_context(redirect_stdout(sys.stderr))
            if not ray.is_initialized():
                self._connect()
                self._stack.callback(ray.shutdown)
            gpus = ray.cluster_resources().get("GPU", 0)
            if self._address == HERE and gpus < self._actors * self._gpus:
                raise AtokenError(
                    f"This machine has {gpus:g} GPUs for {self._actors} actors of {self._gpus:g} each; see "
                    "--actors and --gpus-per-actor."
                )
            self._joiner = self._stack.enter_context(ThreadPoolExecutor(JOINS))
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def _connect(self) -> None:
        import ray

        local: dict[str, Any] = {}
        if self._address == HERE:
            cores = os.cpu_count() or 1
            # An actor on a core must leave one for readers.
            local = {"num_cpus": cores if self._gpus else max(cores, self._actors + 1), "include_dashboard": False}
        try:
            ray.init(self._address, log_to_driver=False, logging_level=logging.ERROR, **local)
        except Exception as error:  # Ray raises Exception itself where it does not start
            where = "on this machine" if self._address == HERE else f"at {self._address}"
            reason = str(error).partition("\n")[0]
            raise AtokenError(f"Ray cannot be reached {where}: {reason}") from error

    def join(self, job: Job, shard: int) -> Future[None]:
        """Begin to join a shard whose units are all there."""
        import ray

        held, task = _held(job), ray.remote(_joined)
        return self._joiner.submit(lambda: _checked(ray.get(task.remote(held, shard))))

    def encode(self, job: Job, units: Sequence[int]) -> Generator[Report]:
        """Make units, in any order, and report each when it is on disk. Raises: AtokenError."""
        from ray.data import ActorPoolStrategy, DataContext, from_numpy
        from ray.exceptions import RayError

        context, held = DataContext.get_current().copy(), _held(job)
        context.enable_progress_bars = False
        context.enable_fallback_to_arrow_object_ext_type = True  # rows hold objects
        context.target_max_block_size = 1  # each unit goes on by itself
        with DataContext.current(context):
            pieces: Any = from_numpy(np.array_split(np.array(units), min(len(units), MOST_TASKS)))
            read = pieces.map(_read, fn_args=(held,), num_cpus=1)
            encoded = read.map(
                _Encoder, fn_constructor_args=(held,), compute=ActorPoolStrategy(size=self._actors),
                num_cpus=0 if self._gpus else 1, num_gpus=self._gpus,
                memory=1,  # a difference, without which Ray Data would let the actors read
            )  # fmt: skip
        try:
            for row in encoded.iter_rows():
                yield _checked(row["report"])
        except RayError as error:
            reason = str(error).strip().rpartition("\n")[2]
            raise AtokenError(f"Ray gave up, run the command again: {type(error).__name__}, {reason}") from error


class _Encoder:
    """An actor with the model, which it loads for its first unit."""

    def __init__(self, held: Held) -> None:
        self._held = held

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        return {"report": _caught(lambda: self._encoded(_checked(row["read"])))}

    def _encoded(self, read: Read) -> Report:
        job = _job(self._held[0])
        with _deaths(job, read.unit, "encoding") as deaths:
            if deaths >= DEATHS:
                raise StoreError(
                    f"The encoder of unit {read.unit} was killed {DEATHS} times; it may take more memory than there is."
                )
            return encode_unit(job, self._tokenizer, read)

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        import atoken

        job = _job(self._held[0])
        wanted = job.plan.model
        tokenizer = atoken.load(**{**job.model, "dtype": wanted.dtype})
        if Model.of(tokenizer) != wanted:
            raise StoreError(f"A machine of the cluster has another {wanted.name}; give all of them the same.")
        return tokenizer


def _read(row: dict[str, Any], held: Held) -> dict[str, Any]:
    """A task: the unit that a row names."""
    return {"read": _caught(lambda: _unit(held, int(row["data"])))}


def _unit(held: Held, unit: int) -> Read:
    job = _job(held[0])
    with _deaths(job, unit, "reading") as deaths:
        if deaths >= 2 * DEATHS:
            raise StoreError(f"Every process that reads unit {unit} is killed, even item by item.")
        return read_unit(job, unit) if deaths < DEATHS else _one_by_one(job, held, unit)


def _one_by_one(job: Job, held: Held, unit: int) -> Read:
    """Read a unit that killed its readers, each item in a task of its own."""
    import ray

    task = ray.remote(max_retries=DEATHS - 1)(_read_one)
    items = job.plan.items_of(unit)
    found: list[Decoded | Failure] = []
    start = perf_counter()
    for item, piece in zip(items, [task.remote(held, unit, item) for item in items], strict=True):
        try:
            found += _checked(ray.get(piece)).items
        except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError):
            found.append(killed(job, item))
    return Read(unit, tuple(found), perf_counter() - start)


def _read_one(held: Held, unit: int, item: int) -> Read | Exception:
    return _caught(lambda: read_unit(_job(held[0]), unit, [item]))


def _joined(held: Held, shard: int) -> Exception | None:
    return _caught(lambda: shards.join(_job(held[0]), shard))


def _held(job: Job) -> Held:
    import ray

    return [ray.put((Path.cwd(), job))]


@lru_cache(1)
def _job(reference: ObjectRef) -> Job:
    """Once in a process: a job may name a million files. Its paths are as seen from the folder of the driver."""
    import ray

    folder, job = ray.get(reference)
    with suppress(OSError):  # all paths may be absolute
        os.chdir(folder)
    return job


@contextmanager
def _deaths(job: Job, unit: int, what: str) -> Iterator[int]:
    """How many processes died within this block; each leaves a byte in a file. Ray Data's own retries have no end."""
    path = job.unit_files(unit)[1].with_suffix(f".{what}")
    with writing(job.store), path.open("ab") as file:
        file.write(b".")
        deaths = file.tell() - 1
    try:
        yield deaths
    finally:
        path.unlink(missing_ok=True)


def _caught(make: Callable[[], Any]) -> Any:
    """What ``make`` gives or raises, of which Ray would make pages."""
    try:
        return make()
    except AtokenError as error:
        return error
    except Exception:  # noqa: BLE001 - a fault of ours, for whoever mends it
        return RuntimeError(traceback.format_exc())


def _checked(made: Any) -> Any:
    if isinstance(made, Exception):
        raise made
    return made
