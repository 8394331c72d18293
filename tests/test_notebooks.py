"""The notebooks run top to bottom, and what is committed is what such a run showed."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from command_line import ENVIRONMENT
from run_notebooks import NOTEBOOKS, faults_of, prepare, run_notebook

# What must hold in the kernel after the last cell, with the small model too.
FACTS = {
    "pretraining": """
assert abs(by_hand - by_clipkit) < 1e-5
assert recall.after["text_to_image_R@5"] > 4 * recall.chance["text_to_image_R@5"]
assert (negatives.after < negatives["chance, ln N"]).all()
""",
    "zero_shot": """
assert len(result) == len(truth) == len(images) == 16
assert shares["8 pictures each, mean"] > shares["Chinese words alone"]
assert abs(rows["calibrated"]["right"] - rows["as trained"]["right"]) < 1e-9
""",
    "search": """
assert len(store) == 3177 and len(folder) == 221
assert (index.search("flag: Japan", k=10).rows == best).all()
assert set(found.of_store) == {0, 1}
""",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where they run one after the other: the first one trains the model of the others."""
    folder = tmp_path_factory.mktemp("notebooks")
    prepare(folder, demo=False)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_top_to_bottom(path: Path, folder: Path) -> None:
    env = {**ENVIRONMENT, "OMP_NUM_THREADS": "1"}
    run_notebook(path, folder, env=env, then=FACTS[path.stem])  # a cell that fails raises


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_committed_notebook_shows_what_a_run_showed(path: Path) -> None:
    committed = nbformat.read(path, as_version=4)
    nbformat.validate(committed)
    assert faults_of(committed) == []
    said = "".join(
        output.get("text", "") for cell in committed.cells for output in cell.get("outputs", [])
    )
    if path.stem != "pretraining":
        assert "runs/emoji: vectors of 192 numbers" in said  # the model of the demo
