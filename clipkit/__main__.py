"""The command as a process: ``clipkit``, ``python -m clipkit``, or a rank of a launcher."""

from __future__ import annotations

import atexit
import os
import sys
from typing import NoReturn

from clipkit.cli import main
from clipkit.threads import bound_spinning


def run() -> NoReturn:
    """Runs the command line, and leaves with its exit code.

    The process leaves without the interpreter's own teardown: in one of twenty to a hundred
    processes that have read Parquet or trained on several ranks, threads of the libraries abort
    there ("terminate called without an active exception"), after all work is done, and the exit
    code is lost. What is registered to run at the end, and what was printed, is seen to before.
    """
    bound_spinning()  # before a command imports torch
    code = main()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:  # a full disk, say
            code = code or 1
    os._exit(code)


if __name__ == "__main__":
    run()
