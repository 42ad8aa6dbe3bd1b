"""The batches of a source, step by step, prefetched by processes of their own."""

from __future__ import annotations

import atexit
import os
import signal
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from itertools import islice
from multiprocessing import resource_tracker
from typing import Any, Generic

import torch
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from atoken.errors import AtokenError
from atoken.train.objective import B, Source

DEAD = "DataLoader worker"  # begins what torch says of a process that was killed


def batches(
    source: Source[B], first_step: int, steps: int, workers: int, rank: int = 0, world: int = 1
) -> Generator[list[B]]:
    """The micro-batches of a rank in each step from ``first_step`` to ``steps``, prefetched by ``workers`` processes.

    Close it, or its processes live as long as something refers to it. Raises: AtokenError (micro-batches that ranks
    cannot share evenly, and as the source).
    """
    shares = (_share(source, step, rank, world) for step in range(first_step, steps))
    # Spawned: torch's threads do not survive a fork, and the worker of a fork server would outlive a killed run.
    loader = DataLoader(
        _ByKey(source), batch_size=None, sampler=(key for share in shares for key in share), num_workers=workers,
        prefetch_factor=2 if workers else None, worker_init_fn=_prepare,
        multiprocessing_context="spawn" if workers else None,
    )  # fmt: skip
    with _children_ignore_sigterm():
        found = iter(loader)
    return _by_step(source, first_step, steps, rank, world, _shut_down_after(found))


def _share(source: Source[B], step: int, rank: int, world: int) -> list[Any]:
    keys = source.keys(step)
    if len(keys) % world:
        raise AtokenError(f"Step {step} has {len(keys)} micro-batches, which {world} ranks cannot share evenly.")
    return list(keys[rank::world])


def _by_step(
    source: Source[B], first_step: int, steps: int, rank: int, world: int, found: Generator[B | AtokenError]
) -> Generator[list[B]]:
    with closing(found):
        for step in range(first_step, steps):
            yield [_raised(one) for one in islice(found, len(_share(source, step, rank, world)))]


def _raised(found: B | AtokenError) -> B:
    if isinstance(found, AtokenError):
        raise found
    return found


@contextmanager
def _children_ignore_sigterm() -> Iterator[None]:
    """Processes that start meanwhile do not hear SIGTERM: launchers send it to all, and a run needs them to its end.

    They end by themselves when their parent is done with them, or gone.
    """
    resource_tracker.ensure_running()  # started with the first of them, it would unblock the signal again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _shut_down_after(found: Iterator[B | AtokenError]) -> Generator[B | AtokenError]:
    """Ends the processes when it is closed: the interpreter would wait for them at its exit, since they ignore it.

    A process that is killed while it hands a batch over breaks the connection: that is a death, too.
    """
    try:
        yield from found
    except (ConnectionError, EOFError, FileNotFoundError) as error:
        if not isinstance(found, _MultiProcessingDataLoaderIter) or str(error).startswith("Caught "):  # of the source
            raise
        raise RuntimeError(f"{DEAD} has broken its connection ({type(error).__name__}).") from error
    finally:
        if isinstance(found, _MultiProcessingDataLoaderIter):
            found._shutdown_workers()


@contextmanager
def living_workers() -> Iterator[None]:
    """Around all of a run: torch raises wherever it is when the system has killed a process that makes batches.

    Raises: AtokenError in place of torch's page.
    """
    try:
        yield
    except RuntimeError as error:
        if not str(error).startswith(DEAD):
            raise
        raise AtokenError(
            f"A process that makes batches died: {str(error).splitlines()[0]} Where memory is short, train with fewer "
            "--workers, or with smaller micro-batches."
        ) from error


class _ByKey(Dataset[Any], Generic[B]):
    """An error is returned, not raised: a DataLoader would make a page of its one sentence."""

    def __init__(self, source: Source[B]) -> None:
        self.source = source

    def __getitem__(self, key: Any) -> B | AtokenError:
        try:
            return self.source.batch(key)
        except AtokenError as error:
            return AtokenError(str(error))  # not every class of it can travel between processes


def _prepare(_: int) -> None:
    """In a process that makes batches, before the first."""
    torch.set_num_threads(1)
    # It must not clean up at its end: the thread that sends batches may be inside torch, which aborts when Python ends
    # its threads, and the loader would take that for a death.
    atexit.register(os._exit, 0)
