"""``clipkit serve``: arguments, and the line that says where the page is."""

from __future__ import annotations

import argparse

from clipkit.display.arguments import count
from clipkit.imports import quick_imports

_DEMO = "runs/emoji/store"  # what scripts/demo.sh leaves


def add_serve_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``clipkit serve``."""
    parser.add_argument(
        "stores",
        nargs="*",
        metavar="STORE",
        help="the folder that clipkit embed wrote; several of one model are searched together "
        f"(default: {_DEMO})",
    )
    parser.add_argument("--model", help="the model that made it (default: the one it names)")
    parser.add_argument(
        "--rows",
        action="store_true",
        help="each row is a hit; without it, rows of the same image file are one hit",
    )
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="where to listen (default: 127.0.0.1, this machine alone); others need --token",
    )
    parser.add_argument(
        "--port", type=count, default=8000, metavar="N", help="default: 8000; 0: any free one"
    )
    parser.add_argument(
        "--token",
        metavar="TOKEN",
        help="what visitors must show; or CLIPKIT_TOKEN, which other users cannot see",
    )
    parser.set_defaults(run=run_serve, rest="stores")


def run_serve(args: argparse.Namespace) -> int:
    """Serves until Ctrl-C."""
    import os
    from pathlib import Path

    from clipkit.errors import ConfigError

    try:
        with quick_imports():
            from clipkit.serve.server import Server
    except ModuleNotFoundError as error:
        if error.name not in ("starlette", "uvicorn", "h11"):
            raise
        raise ConfigError(
            f"serve: {error.name} is not installed; pip install 'clipkit-pretraining[serve]'"
        ) from error

    folders = args.stores or [_DEMO]
    if not args.stores and not Path(_DEMO).is_dir():
        raise ConfigError(
            f"serve: which store? There is no {_DEMO} here, which bash scripts/demo.sh makes; "
            "name the folder that clipkit embed wrote"
        )

    def say(url: str) -> None:
        print(f"{' + '.join(folders)} is at {url} (Ctrl-C stops)", flush=True)

    Server(
        folders,
        model=args.model,
        rows=args.rows,
        host=args.host,
        port=args.port,
        token=args.token or os.environ.get("CLIPKIT_TOKEN") or None,
        on_ready=say,
    ).serve_until_stopped()
    return 0
