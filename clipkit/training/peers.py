"""A rank that dies ends the others within a minute, by name."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import torch.distributed as dist

_BEAT = 3.0  # seconds
_SILENT = 40.0  # seconds without a sign of life after which a rank is given up


class Peers:
    """Watches over the other ranks from a thread, while this one may wait for them in vain.

    A rank on this machine is looked for by its process. Each rank also leaves a sign of life in
    the launcher's store, and watches that of the next rank; who finds it silent tells all.

    Args:
        on_loss: called with a sentence, in the thread, before the process ends with exit 75.
    """

    def __init__(self, on_loss: Callable[[str], None]) -> None:
        self._on_loss = on_loss
        self._ended = threading.Event()
        self._said = threading.Lock()
        if not dist.is_initialized() or dist.get_world_size() == 1:
            self._ended.set()
            return
        self._rank, self._number = dist.get_rank(), dist.get_world_size()
        who: list[Any] = [None] * self._number
        dist.all_gather_object(who, (socket.gethostname(), os.getpid()))
        self._who: list[tuple[str, int]] = who
        self._store = dist.distributed_c10d._get_default_store().clone()
        self._thread = threading.Thread(target=self._watch, name="peers", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends the watch; called by all ranks before the first of them leaves."""
        self._ended.set()

    def lost(self, patience: float = 0.0) -> str | None:
        """A sentence about a rank on this machine that is no more; waits for one to be found."""
        if self._ended.is_set():
            return None
        deadline = time.monotonic() + patience
        while True:
            for rank, (host, pid) in enumerate(self._who):
                if rank != self._rank and host == self._who[self._rank][0] and not _runs(pid):
                    return _sentence(rank, host, pid, "was killed or has ended")
            if time.monotonic() >= deadline:
                return None
            time.sleep(0.2)

    def leave(self, sentence: str) -> None:
        """Says what happened and ends this process at once: what waits for a dead rank in a
        collective cannot be called back."""
        with self._said:
            self._ended.set()
            self._on_loss(sentence)
            sys.stderr.flush()
            os._exit(75)

    def _watch(self) -> None:
        neighbour = (self._rank + 1) % self._number
        last, since, beat = b"", time.monotonic(), 0
        while not self._ended.wait(_BEAT):
            if found := self.lost():
                # The launcher may be about to say so and end us; others learn it from us.
                self._tell(found)
                self.leave(found)
            try:
                beat += 1
                self._store.set(f"clipkit/alive/{self._rank}", str(beat))
                if self._store.check(["clipkit/lost"]):
                    self.leave(self._store.get("clipkit/lost").decode())
                sign = b""
                if self._store.check([f"clipkit/alive/{neighbour}"]):
                    sign = self._store.get(f"clipkit/alive/{neighbour}")
            except Exception:
                if self._ended.wait(_BEAT):
                    return
                host, pid = self._who[0]
                self.leave(_sentence(0, host, pid, "or its machine no longer answers"))
            if sign != last:
                last, since = sign, time.monotonic()
            elif time.monotonic() - since > _SILENT:
                host, pid = self._who[neighbour]
                found = _sentence(neighbour, host, pid, f"has been silent for {_SILENT:.0f} s")
                self._tell(found)
                self.leave(found)

    def _tell(self, sentence: str) -> None:
        with contextlib.suppress(Exception):  # the store may have gone with the rank
            self._store.set("clipkit/lost", sentence)


def _sentence(rank: int, host: str, pid: int, how: str) -> str:
    return (
        f"rank {rank} (process {pid} on {host}) {how}, so this rank ends too; if it ran out of "
        "memory, lower train.batch_size or set train.micro_batch. The same command goes on from "
        "the last checkpoint"
    )


def _runs(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        if os.path.exists("/proc/self/stat"):
            return False
    except OSError:
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
