"""Items of a map-style dataset, in order, made by worker processes that fail in plain words.

A thin shell around torch's ``DataLoader``: it starts workers quietly, keeps them from dying
of signals meant for the trainer, and turns a killed worker into one sentence.
"""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import warnings
import weakref
from collections.abc import Iterable, Iterator
from multiprocessing.util import Finalize
from typing import Any, Generic, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from clipkit.errors import ConfigError, DataError

T = TypeVar("T")
START_METHOD = "CLIPKIT_START_METHOD"  # the environment variable; ``spawn`` or ``fork``


class WorkerLoader(Generic[T]):
    """The items ``dataset[i] for i in indices``, in this order.

    Args:
        dataset: picklable where workers are spawned.
        indices: what to ask it for, in this process, ``ahead`` of what is given out.
        workers: processes; 0 makes the items here.
        ahead: items that are in the making or waiting, about.
        start_method: ``fork`` or ``spawn``; None takes CLIPKIT_START_METHOD, or else fork on
            Linux and spawn elsewhere, where forking is not safe.
    """

    def __init__(
        self,
        dataset: Dataset[T],
        indices: Iterable[int],
        *,
        workers: int,
        ahead: int,
        start_method: str | None = None,
    ) -> None:
        method = start_method or os.environ.get(START_METHOD) or _default_start_method()
        if method not in ("fork", "spawn") or method not in multiprocessing.get_all_start_methods():
            raise ConfigError(f"{START_METHOD}: {method!r} is not a way to start workers here.")
        options: dict[str, Any] = {}
        if workers > 0:
            options = {
                "multiprocessing_context": method,
                "prefetch_factor": max(1, -(-ahead // workers)),
                "worker_init_fn": _init_worker,
            }
        with _quiet_start():
            self._loader: DataLoader[T] = DataLoader(
                dataset,
                batch_size=None,  # items are batches already
                sampler=indices,
                num_workers=workers,
                collate_fn=_share,
                # Its own: drawing the workers' seed must not move the trainer's random numbers.
                generator=torch.Generator(),
                **options,
            )
        self._iterator: Any = None
        self._processes: list[Any] = []

    def __iter__(self) -> Iterator[T]:
        self.close()
        self._start()
        while True:
            try:
                item: T = next(self._iterator)
            except StopIteration:
                return
            except (RuntimeError, OSError, EOFError) as error:
                # What torch raises depends on what the worker was doing when it died.
                if "shared memory" in str(error):
                    raise DataError(_ended("data.workers: a loader worker", _NO_SHM)) from error
                if death := self._death():
                    raise DataError(death) from error
                raise
            yield item

    def close(self) -> None:
        """Ends the workers. Those that ignore SIGTERM would hang the end of this process."""
        iterator, self._iterator = self._iterator, None
        processes, self._processes = self._processes, []
        if hasattr(iterator, "_shutdown_workers"):
            iterator._shutdown_workers()
        for process in processes:
            if process.is_alive():
                process.kill()
            process.join(timeout=5)

    def _start(self) -> None:
        before = set(multiprocessing.active_children())
        with _quiet_start(), _own_sigchld():
            self._iterator = iter(self._loader)
        self._processes = [p for p in multiprocessing.active_children() if p not in before]
        if self._processes:
            # Runs before torch's and multiprocessing's own hooks, which came earlier.
            atexit.register(_close_if_alive, weakref.ref(self))

    def _death(self) -> str | None:
        for process in self._processes:
            process.join(timeout=1)
            if process.exitcode not in (None, 0):
                who = f"data.workers: a loader worker (pid {process.pid})"
                return _ended(who, _how_it_ended(process.exitcode))
        return None


_NO_SHM = "ran out of shared memory (/dev/shm is full or too small)"


def _ended(who: str, how: str) -> str:
    return (
        f"{who} {how}; lower data.workers or train.batch_size, or give the job more memory, then "
        "run the same command to resume."
    )


def _how_it_ended(exitcode: int) -> str:
    if exitcode == -signal.SIGKILL:
        return "was killed, most likely because the machine or container ran out of memory"
    if exitcode == -getattr(signal, "SIGBUS", 0):
        return _NO_SHM
    if exitcode < 0:
        return f"died of signal {-exitcode}"
    return f"ended with exit code {exitcode}"


def _close_if_alive(loader: weakref.ref[WorkerLoader[Any]]) -> None:
    if (alive := loader()) is not None:
        alive.close()


def _default_start_method() -> str:
    return "fork" if sys.platform == "linux" else "spawn"


def _share(item: T) -> T:
    """Moves an item's pixels to shared memory in the worker's own thread.

    Left to torch's feeder thread, a full /dev/shm is an error that nobody sees, and the
    trainer waits for ever.
    """
    pixels: Any = getattr(item, "pixel_values", None)
    if pixels is not None and torch.utils.data.get_worker_info() is not None:
        pixels.share_memory_()
    return item


def _init_worker(_: int) -> None:
    # A signal to the process group is for the trainer, which saves and then ends its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if hasattr(signal, "SIGUSR1"):
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    torch.set_num_threads(1)
    if (parent := multiprocessing.parent_process()) is not None:
        # Before the finalizer that waits for what it has made to be read, at -5.
        Finalize(None, _leave_if_alone, args=(parent.pid,), exitpriority=0)


def _leave_if_alone(parent: int) -> None:
    """Ends a worker whose parent was killed: nobody reads the pipe, which may be full, and other
    workers that hold its other end keep it from breaking."""
    if os.getppid() != parent:
        os._exit(0)


@contextlib.contextmanager
def _quiet_start() -> Iterator[None]:
    """No warnings about forking a process that has threads: the workers use none of them."""
    variable = "TOKENIZERS_PARALLELISM"
    before = os.environ.get(variable)
    os.environ.setdefault(variable, "false")  # tokenizers warns in the middle of the fork
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*fork.*", category=DeprecationWarning)
            # Fewer cores than workers is the user's choice, and often a container's fault.
            warnings.filterwarnings("ignore", message=".*worker processes in total.*")
            yield
    finally:
        if before is None:
            os.environ.pop(variable, None)


@contextlib.contextmanager
def _own_sigchld() -> Iterator[None]:
    """Undoes torch's SIGCHLD handler, which would raise in the middle of a training step.

    A dead worker is then found by torch's own check, within five seconds of waiting for it.
    """
    if not hasattr(signal, "SIGCHLD") or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, before if before is not None else signal.SIG_DFL)
