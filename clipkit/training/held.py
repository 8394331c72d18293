"""What a run holds while it lasts: the lock of its folder, word from its peers, its saver."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from clipkit.errors import RunRefused
from clipkit.lock import Claim, owner_of
from clipkit.lock import Held as Taken
from clipkit.training.peers import Peers
from clipkit.training.saving import Saver


@dataclass
class Held:
    """What a run holds while it lasts."""

    lock: Claim | None = None
    peers: Peers | None = None
    saver: Saver | None = None

    def owns(self, folder: Path) -> bool:
        """Whether there is a folder, and no other process trains there."""
        return folder.is_dir() and (self.lock is not None or owner_of(folder / "lock.json") is None)

    def release(self) -> None:
        """Lets go of all of it, the saver's last checkpoint first."""
        if self.saver is not None:
            self.saver.finish()
        if self.peers is not None:
            self.peers.close()
        if self.lock is not None:
            self.lock.release()


def lock_run(folder: Path) -> Claim:
    """Two runs never write one folder.

    Raises:
        RunRefused: another process trains there.
    """
    try:
        return Claim(folder / "lock.json")
    except Taken as owner:
        raise RunRefused(
            f"{folder}: {owner} trains in this folder; wait for it, end it, or set another output. "
            "If this is a copy of that run's folder, remove the lock.json that was copied with it"
        ) from None
