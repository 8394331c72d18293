"""The command line: one thin function a subcommand, heavy imports inside it."""

from __future__ import annotations

import argparse
import errno
import io
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from clipkit._version import __version__
from clipkit.errors import ClipkitError, exit_code_of, is_out_of_memory
from clipkit.evaluation.commands import add_classify_arguments, add_eval_arguments
from clipkit.evaluation.report_command import add_report_arguments
from clipkit.imports import quick_imports
from clipkit.interchange.commands import add_convert_arguments, add_export_arguments
from clipkit.retrieval.commands import add_embed_arguments
from clipkit.retrieval.data_commands import add_data_arguments
from clipkit.retrieval.index_command import add_index_arguments
from clipkit.retrieval.search_command import add_search_arguments
from clipkit.serve.commands import add_serve_arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code (see :mod:`clipkit.errors`)."""
    for stream in (sys.stdout, sys.stderr):
        # A file name that is not UTF-8 is no reason to fail.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    warnings.formatwarning = _in_one_line
    parser = build_parser()
    args, unknown = parser.parse_known_args(argv)
    if "rest" in args:
        # argparse takes nothing more into a list of words once an option has stood before it.
        end = unknown.index("--") if "--" in unknown else len(unknown)
        words = [word for word in unknown[:end] if not word.startswith("-")]
        getattr(args, args.rest).extend([*words, *unknown[end + 1 :]])
        unknown = [word for word in unknown[:end] if word.startswith("-")]
    if unknown:
        hint = ""
        if args.command == "train" and "=" in unknown[0]:
            hint = f" Keys of the config are written without dashes: {unknown[0].lstrip('-')}"
        return _fail(f"{unknown[0]}: no such option of clipkit {args.command}.{hint}", 2)
    try:
        code: int = args.run(args)
        sys.stdout.flush()
        return code
    except ClipkitError as error:
        return error.exit_code if error.said else _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        hint = ""
        if args.command == "train":
            hint = "; the same command goes on from the last checkpoint, if there is one"
        elif args.command == "embed":
            hint = "; the same command goes on with the parts that are missing"
        elif "out" in args and args.command == "data":
            hint = "; the same command goes on with the shards that are missing"
        return _fail(f"interrupted{hint}", 130)
    except BrokenPipeError:
        # The reader of our output has gone, as with ``| head``: nothing is left to say.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return _fail(
            f"out of memory; {_LESS_MEMORY.get(args.command, 'close what takes it')}",
            exit_code_of(error),
        )
    except OSError as error:
        # A full disk, a folder that may not be written: the path says where.
        where = f"{error.filename}: " if error.filename else ""
        hint = "; free some of it, and run the same command" if error.errno == errno.ENOSPC else ""
        return _fail(f"{where}{error.strerror or error}{hint}", exit_code_of(error))


_LESS_MEMORY = {
    "train": "lower train.batch_size, or set train.micro_batch; --dry-run estimates what it takes",
    "embed": "lower --batch-size",
}


def build_parser() -> argparse.ArgumentParser:
    """The parser of all subcommands; building it imports nothing heavy."""
    parser = argparse.ArgumentParser(
        prog="clipkit",
        description="Contrastive image-text pretraining: train, embed, search, classify.",
        epilog="Exit codes: 0 done · 2 usage or config · 3 data · 4 checkpoint or run folder · "
        "5 non-finite training · 75 preempted, run the same command again.",
    )
    parser.add_argument("--version", action="version", version=f"clipkit {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, add_arguments, text in (
        ("train", _add_train_arguments, "train a model, or go on with a run that stopped"),
        (
            "convert",
            add_convert_arguments,
            "make a folder of safetensors: of a checkpoint, of .bin",
        ),
        ("embed", add_embed_arguments, "embed images and captions into a store"),
        ("index", add_index_arguments, "make the search in a store faster"),
        ("search", add_search_arguments, "find images in a store by text or by image"),
        ("serve", add_serve_arguments, "search a store in the browser"),
        ("classify", add_classify_arguments, "sort images into classes named in words"),
        ("eval", add_eval_arguments, "measure retrieval on a data set"),
        ("report", add_report_arguments, "make a page about runs: curves, results, comparison"),
        ("export", add_export_arguments, "write a model for transformers, open_clip or ONNX"),
        ("data", add_data_arguments, "check a data set, or pack it into shards"),
    ):
        command = commands.add_parser(name, help=text, description=text[0].upper() + text[1:])
        add_arguments(command)
    return parser


def _add_train_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", help="a YAML file, such as configs/emoji.yaml")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="dotted, such as optim.lr=5e-4"
    )
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument(
        "--print-config", action="store_true", help="print the whole config and stop"
    )
    instead.add_argument(
        "--dry-run",
        action="store_true",
        help="print parameters, FLOPs, memory, samples and steps, load one batch, and stop; with "
        "plan.gpu_tflops=989 or another key of plan, a table of 1 to 4,096 GPUs too",
    )
    instead.add_argument(
        "--profile",
        action="store_true",
        help="time the parts of a step, write a trace to OUTPUT/profile, and stop",
    )
    parser.add_argument(
        "--allow-change",
        action="append",
        default=[],
        metavar="KEY",
        help="go on with a run although this key of its config has changed; may be repeated",
    )
    parser.set_defaults(run=_train, rest="overrides")


def _train(args: argparse.Namespace) -> int:
    from clipkit.config import dump_config, load_config

    config = load_config(args.config, args.overrides)
    if args.print_config:
        print(dump_config(config), end="")
        return 0
    if args.dry_run:
        with quick_imports():
            from clipkit.training.plan import dry_run

        if plan := dry_run(config):
            print(plan)
        return 0
    if args.profile:
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else the profiler talks about itself
        with quick_imports():
            from clipkit.training.profile import profile_run

        if table := profile_run(config):
            print(table)
        return 0
    with quick_imports():
        from clipkit.training.loop import train

    train(config, allow_change=args.allow_change)
    return 0


def _in_one_line(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    line: str | None = None,
) -> str:
    """Our own warnings as our errors are said; those of others as Python has them."""
    if category is UserWarning and Path(filename).is_relative_to(Path(__file__).parent):
        return f"clipkit: {message}\n"
    return _python_has_it(message, category, filename, lineno, line)


_python_has_it = warnings.formatwarning


def _fail(message: str, code: int) -> int:
    rank = os.environ.get("RANK", "0")
    where = f" (rank {rank})" if rank != "0" else ""
    print(f"clipkit{where}: {message}", file=sys.stderr)
    return code
