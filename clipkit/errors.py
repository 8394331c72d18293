"""Errors a user may meet, each with the exit code its command ends with.

A message says where, what, and what to do. The command line prints it as one line; the
exit codes are part of the interface: 0 done · 2 usage or config · 3 data · 4 checkpoint or
run folder · 5 non-finite training · 75 preempted, run the same command again.
"""

from __future__ import annotations


class ClipkitError(ValueError):
    """Base of all errors meant for a user; a ``ValueError``, as for any bad input.

    Attributes:
        exit_code: of the command.
        said: another process of the same run tells the user.
    """

    exit_code = 2
    said = False


class ConfigError(ClipkitError):
    """A key, value or combination in a config or on the command line."""


class DataError(ClipkitError):
    """A data set that is missing, empty, damaged, or loses too many samples."""

    exit_code = 3


class CheckpointError(ClipkitError):
    """A model, checkpoint, store or run folder that cannot be read, or does not fit."""

    exit_code = 4


class RunRefused(CheckpointError):
    """A run's folder that this start may not touch: the run in it is left as it is."""


class NonFiniteError(ClipkitError):
    """Training met NaN or Inf more often than it may."""

    exit_code = 5


class Preempted(ClipkitError):
    """Training was asked to stop and saved; running the same command resumes it."""

    exit_code = 75


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory was refused, by Python, by torch on the CPU, or by torch on a GPU."""
    words = ("can't allocate memory", "not enough memory", "out of memory")
    refused = isinstance(error, RuntimeError) and any(each in str(error) for each in words)
    return isinstance(error, MemoryError) or refused


def exit_code_of(error: BaseException) -> int:
    """What a command ends with for an error; 1 for one that nobody thought of."""
    if isinstance(error, ClipkitError):
        return error.exit_code
    if is_out_of_memory(error):
        return 2
    return 4 if isinstance(error, OSError) else 1
