"""Runs the notebooks top to bottom, each in a fresh kernel, and writes their outputs back.

    python scripts/run_notebooks.py                           # all of them
    python scripts/run_notebooks.py notebooks/search.ipynb

They run on one thread, in a folder of their own with the checkout's data, so that nothing an
earlier run has left is seen, except the model of the demo (`bash scripts/demo.sh`), which the
outputs in the repository were made with: where runs/emoji is not there, the notebooks train a
smaller one, and say so.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parent.parent
# In the order in which they are read; the first trains what the others use without the demo.
NOTEBOOKS = tuple(
    ROOT / "notebooks" / f"{name}.ipynb" for name in ("pretraining", "zero_shot", "search")
)
# tqdm complains where ipywidgets are not installed, which nothing here needs.
_ENVIRONMENT = {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore:IProgress not found"}
_MOST_BYTES = 1_000_000  # of one notebook
_MACHINE_PATH = re.compile(
    r"""(?:^|[\s"'(=:\[])(/(?:home|Users|root|tmp|var|work|mnt|opt|usr|private)/[^\s"'<>]*)"""
)


def prepare(folder: Path, *, demo: bool) -> None:
    """Makes a folder that the notebooks run in: the data, and the demo's model if it is asked for
    and there."""
    (folder / "notebooks").mkdir()
    (folder / "data").symlink_to(ROOT / "data")
    shutil.copy(ROOT / "notebooks" / "short.yaml", folder / "notebooks")
    model = ROOT / "runs" / "emoji" / "model"
    if demo and model.is_dir():
        shutil.copytree(model, folder / "runs" / "emoji" / "model")


def run_notebook(
    path: Path, folder: Path, *, env: Mapping[str, str] = os.environ, then: str = ""
) -> nbformat.NotebookNode:
    """The notebook with the outputs of a fresh kernel.

    Args:
        path: of the notebook, which is left as it is.
        folder: see ``prepare``; the kernel starts in its notebooks/, as Jupyter's do.
        env: the kernel's environment; clipkit is this checkout's.
        then: code to run after the last cell, in the same kernel.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed.
    """
    notebook = nbformat.read(path, as_version=4)
    if then:
        notebook.cells.append(nbformat.v4.new_code_cell(then))
    NotebookClient(
        notebook,
        timeout=600,
        startup_timeout=300,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder / "notebooks")}},
        record_timing=False,
        coalesce_streams=True,  # a progress bar leaves its last state alone
    ).execute(env={"OMP_NUM_THREADS": "1", **env, **_ENVIRONMENT})
    return notebook


def clean(notebook: nbformat.NotebookNode) -> None:
    """Leaves out what tells of the machine, and changes from run to run for no reason."""
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for cell in notebook.cells:
        cell.metadata = {}


def faults_of(notebook: nbformat.NotebookNode) -> list[str]:
    """Why a notebook with its outputs may not be committed; empty where it may."""
    faults = []
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for number, cell in enumerate(code, start=1):
        where = f"code cell {number}"
        if cell.execution_count != number:
            faults.append(f"{where}: it was not run from top to bottom")
        if not cell.outputs:
            faults.append(f"{where}: it shows nothing")
        for output in cell.outputs:
            if output.output_type == "error":
                faults.append(f"{where}: {output.ename}: {output.evalue}")
            for text in _texts(output):
                if found := _MACHINE_PATH.search(text):
                    faults.append(f"{where}: a path of this machine: {found[1]}")
    size = len(nbformat.writes(notebook).encode())
    if size > _MOST_BYTES:
        faults.append(f"{size:,} bytes, more than {_MOST_BYTES:,}; show fewer or smaller pictures")
    return faults


def _texts(output: nbformat.NotebookNode) -> list[str]:
    data = output.get("data", {})
    texts = [value for kind, value in data.items() if kind.startswith("text/")]
    return [*texts, output.get("text", "")]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("notebooks", nargs="*", type=Path, default=NOTEBOOKS)
    args = parser.parse_args()
    failed = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder, demo=True)
        for path in args.notebooks:
            notebook = run_notebook(path, folder)
            clean(notebook)
            faults = faults_of(notebook)
            for fault in faults:
                print(f"{path}: {fault}", file=sys.stderr)
            nbformat.write(notebook, path)
            print(f"{path}: {path.stat().st_size:,} bytes")
            failed |= bool(faults)
    return failed


if __name__ == "__main__":
    sys.exit(main())
