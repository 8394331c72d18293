"""``clipkit export`` and ``clipkit convert``: arguments, and what is printed."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

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


def add_convert_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``clipkit convert``."""
    parser.description = (
        "Make a new Hugging Face folder with safetensors: of a checkpoint of a run, whole or "
        "sharded; or of a model's folder whose weights are pickled (pytorch_model.bin, whole or "
        "sharded, or open_clip_pytorch_model.bin), without running code from them. Nothing is "
        "changed where it is read."
    )
    parser.add_argument(
        "source",
        help="a checkpoint, such as runs/emoji/checkpoints/step-000400; a run: its newest one; or "
        "a model's folder or hub name with .bin weights",
    )
    parser.add_argument("out", help="the folder to make")
    parser.set_defaults(run=run_convert)


def run_convert(args: argparse.Namespace) -> int:
    """Writes the folder, and says what it was made of."""
    source, out = Path(args.source), Path(args.out)
    is_run = (source / "checkpoints").is_dir() or (source / "manifest.json").is_file()
    if is_run or _is_no_model(source):
        with quick_imports():
            from clipkit.training.convert import convert

        checkpoint, damaged = convert(source, out)
        for line in damaged:
            print(f"damaged and passed over: {line}", file=sys.stderr)
        print(f"{checkpoint} → {out}")
        return 0
    with quick_imports():
        from clipkit.display.console import plain_warnings
        from clipkit.interchange.unpickle import unpickle

    with plain_warnings():
        made = unpickle(args.source, out)
    print(f"{args.source} → {out}: {made.kind}, {made.weights} weights, each as in the pickle")
    if made.refused:
        print(f"clipkit.load does not take it yet: {made.refused}", file=sys.stderr)
    return 0


def _is_no_model(source: Path) -> bool:
    """Whether a folder holds neither a config nor weights, so that a checkpoint was meant."""
    return source.is_dir() and not any(
        any(source.glob(pattern)) for pattern in ("config.json", "open_clip_config.json", "*.bin")
    )
