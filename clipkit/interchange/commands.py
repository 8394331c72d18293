"""``clipkit export``: arguments, and what is printed."""

from __future__ import annotations

import argparse

from clipkit.imports import quick_imports

FORMATS = ("transformers", "open_clip", "onnx")


def add_export_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``clipkit export``."""
    parser.add_argument("model", help="a run, or a model's folder or hub name")
    parser.add_argument("out", help="the folder to make")
    parser.add_argument("--to", required=True, choices=FORMATS, help="for which library")
    parser.add_argument(
        "--tokenizer", metavar="NAME", help="a folder or hub name with the model's tokenizer"
    )
    parser.add_argument(
        "--license", metavar="NAME", help="of the model, for the head of its card: apache-2.0, …"
    )
    parser.add_argument(
        "--push-to-hub", metavar="OWNER/NAME", help="then upload the folder to the hub"
    )
    parser.set_defaults(run=run_export)


def run_export(args: argparse.Namespace) -> int:
    """Writes the folder, and says what it was compared with and how far they differ."""
    from pathlib import Path

    with quick_imports():
        from clipkit.display.console import plain_warnings
        from clipkit.interchange.compare import TOLERANCE
        from clipkit.interchange.export import export, push

    with plain_warnings():
        found = export(
            args.model,
            Path(args.out),
            to=args.to,
            tokenizer=args.tokenizer,
            licence=args.license,
        )
    print(f"{args.model} → {args.out}, for {args.to}")
    print(
        f"compared with {found.library}: unit vectors of images differ by {found.images:.1e}, of "
        f"texts by {found.texts:.1e}; up to {TOLERANCE:.0e} is let through"
    )
    if found.resized is not None:
        why = f", {found.why}" if found.why else ""
        print(f"images that are resized first: {found.resized:.1e}{why}")
    if found.missing:
        print(f"{found.missing} is not installed, so it was not compared with {found.missing}")
    if args.push_to_hub:
        print(push(Path(args.out), args.push_to_hub))
    return 0
