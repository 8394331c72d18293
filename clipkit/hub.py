"""A folder, or a name on the Hugging Face hub: which of them a user meant."""

from __future__ import annotations

import difflib
from pathlib import Path

from clipkit.errors import CheckpointError


def find_folder(folder_or_name: str, *, what: str) -> Path | None:
    """The folder, or None for what can only be a hub name.

    A misspelt path would otherwise be looked up on the hub, with half a minute of retries
    where there is no network.

    Args:
        folder_or_name: as the user gave it.
        what: what the folder should hold, for the message: ``a model``.

    Raises:
        CheckpointError: a path was meant, and there is nothing.
    """
    folder = Path(folder_or_name)
    if folder.is_dir():
        return folder
    is_path = (
        folder.is_absolute() or folder_or_name.startswith((".", "~")) or "\\" in folder_or_name
    )
    beside_others = len(folder.parts) == 2 and folder.parent.is_dir()
    if is_path or beside_others or len(folder.parts) > 2:
        problem = "a file, not a folder" if folder.exists() else "no such folder"
        raise CheckpointError(f"{folder}: {problem}; name one that holds {what}.{_near(folder)}")
    if "/" not in folder_or_name:
        problem = "this is a file" if folder.exists() else "no such folder"
        raise CheckpointError(
            f"{folder_or_name}: {problem}; hub names are owner/name.{_near(folder)}"
        )
    return None


def _near(folder: Path) -> str:
    """`` Did you mean x?``: the folder beside it whose name is nearest."""
    if folder.exists() or not folder.parent.is_dir():
        return ""
    names = [path.name for path in folder.parent.iterdir() if path.is_dir()]
    near = difflib.get_close_matches(folder.name, names, n=1)
    return f" Did you mean {folder.parent / near[0]}?" if near else ""


def first_line(error: Exception) -> str:
    """The first line of a library's message, to be quoted in one of ours."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
