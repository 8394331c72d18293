"""Imports point one way, and the light modules stay light."""

from __future__ import annotations

import ast
import gc
import subprocess
import sys
from pathlib import Path

import pytest

from clipkit.imports import quick_imports

# A folder or module, and what of clipkit it may import besides itself.
LOW = {
    "errors",
    "_version",
    "config",
    "types",
    "hub",
    "atomic",
    "lock",
    "interrupt",
    "launcher",
    "digest",
    "imports",
    "threads",
}
TOWERS = {*LOW, "data", "models", "losses"}
SHOWN = {"inputs", "display"}
USERS = {*TOWERS, "inputs", "encoder", "display"}
ALLOWED: dict[str, set[str]] = {
    "_version": set(),
    "errors": set(),
    "types": set(),
    "hub": {"errors"},
    "atomic": {"errors"},
    "lock": set(),
    "interrupt": set(),
    "launcher": {"errors"},
    "digest": {"errors"},
    "imports": set(),
    "threads": set(),
    "config": {"errors"},
    "data": LOW,
    "models": {*LOW, "data"},  # a model is compared with its tokenizer
    "losses": LOW,
    "inputs": {*LOW, "data"},
    "display": {*LOW, "data", "inputs"},
    "encoder": {*TOWERS, *SHOWN},
    "evaluation": {*TOWERS, *SHOWN, "encoder"},
    "retrieval": {*TOWERS, *SHOWN, "encoder"},
    "interchange": {*TOWERS, *SHOWN, "encoder", "evaluation", "training"},
    "serve": {*TOWERS, *SHOWN, "encoder", "retrieval"},
    "training": {*TOWERS, *SHOWN, "encoder", "evaluation", "retrieval"},
    "cli": {
        *TOWERS,
        *SHOWN,
        "encoder",
        "evaluation",
        "interchange",
        "retrieval",
        "serve",
        "training",
    },
    "__init__": {*TOWERS, *SHOWN, "encoder", "evaluation", "retrieval", "training"},
    "__main__": {"cli", "threads"},
}


def _imported(path: Path) -> set[str]:
    """Folders and modules of clipkit that a file imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        modules: list[str] = []
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            if node.module == "clipkit":
                modules = [f"clipkit.{alias.name}" for alias in node.names]
            else:
                modules = [node.module or ""]
        names |= {m.split(".")[1] for m in modules if m.startswith("clipkit.")}
    return names


def test_imports_point_one_way(root: Path) -> None:
    package = root / "clipkit"
    files = sorted(package.rglob("*.py"))
    assert len(files) > 20
    for path in files:
        home = path.relative_to(package).parts[0].removesuffix(".py")
        wrong = _imported(path) - ALLOWED[home] - {home}
        assert not wrong, f"{path.relative_to(root)} imports {sorted(wrong)}"


def test_the_command_line_is_built_without_heavy_imports() -> None:
    code = (
        "import sys, clipkit.cli; clipkit.cli.build_parser(); "
        "heavy = {'torch', 'numpy', 'transformers', 'datasets', 'PIL', 'jsonargparse', 'pyarrow'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (result.stdout.strip(), result.returncode) == ("[]", 0), result.stderr


def test_every_public_name_loads() -> None:
    code = "import clipkit; print([n for n in clipkit.__all__ if getattr(clipkit, n) is None])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (result.stdout.strip(), result.returncode) == ("[]", 0), result.stderr


def test_cycles_are_collected_again_after_the_imports_of_a_command() -> None:
    def fail() -> None:
        with quick_imports():
            assert not gc.isenabled()
            raise ModuleNotFoundError

    with pytest.raises(ModuleNotFoundError):
        fail()
    assert gc.isenabled()
    gc.unfreeze()  # for the tests after this one
