"""``clipkit serve``: arguments, and the line that says where the page is."""

from __future__ import annotations

import argparse

from clipkit.display.arguments import count
from clipkit.imports import quick_imports

_DEMO = "runs/emoji/store"  # what scripts/demo.sh leaves


def add_serve_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``clipkit serve``."""
    parser.add_argument(
        "store", nargs="?", help=f"the folder that clipkit embed wrote (default: {_DEMO})"
    )
    parser.add_argument("--model", help="the model that made it (default: the one it names)")
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
    parser.set_defaults(run=run_serve)


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

    folder = args.store or _DEMO
    if args.store is None and not Path(folder).is_dir():
        raise ConfigError(
            f"serve: which store? There is no {folder} here, which bash scripts/demo.sh makes; "
            "name the folder that clipkit embed wrote"
        )

    def say(url: str) -> None:
        print(f"{folder} is at {url} (Ctrl-C stops)", flush=True)

    Server(
        folder,
        model=args.model,
        host=args.host,
        port=args.port,
        token=args.token or os.environ.get("CLIPKIT_TOKEN") or None,
        on_ready=say,
    ).serve_until_stopped()
    return 0
