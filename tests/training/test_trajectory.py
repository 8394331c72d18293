"""Short runs of scripts/trajectory.py have the losses on record, to rounding, on any machine.

Made anew, where a change is meant to move them, by
``PYTHONPATH=tests:scripts python tests/training/test_trajectory.py``.
"""

from __future__ import annotations

import json
import platform
import statistics
import tempfile
from pathlib import Path

import pytest
from trajectory import RUNS, steps_of, write_config

import clipkit

RECORD = Path(__file__).with_name("trajectories.json")
# In one process; others are in test_equivalence.py and test_kills.py.
NAMES = [name for name, run in RUNS.items() if not run.keys() & {"ranks", "kill", "data.workers"}]
# How far a step's loss may be from the record, and the mean over the steps: a drift to one side
# passes the first. Other versions and processors sum in another order, which made at most 8e-6 and
# 2e-6 in float32, 9e-4 and 3e-4 in bf16 (SSE instructions in place of AVX2, two threads for one).
TOLERANCES = {"fp32": (2e-4, 2e-5), "bf16": (2e-2, 4e-3)}


def losses(folder: Path, name: str) -> list[float]:
    """The loss of each step, without dropout, whose random numbers are a version's own."""
    dropout = {} if "model" in RUNS[name] else {
        "model__vision__dropout": 0.0, "model__text__dropout": 0.0
    }  # fmt: skip
    clipkit.train(clipkit.load_config(write_config(folder, name, **dropout)))
    return [step["loss"] for step in steps_of(folder / name)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for all of them: one starts from the model of the first."""
    return tmp_path_factory.mktemp("runs")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*has no effect")
@pytest.mark.parametrize("name", NAMES)
def test_losses_are_those_on_record(folder: Path, name: str) -> None:
    if (after := RUNS[name].get("after")) and not (folder / after).is_dir():
        losses(folder, after)
    recorded = json.loads(RECORD.read_text())["losses"][name]
    found = losses(folder, name)
    each, mean = TOLERANCES[RUNS[name].get("train.precision", "fp32")]
    residuals = [one / other - 1 for one, other in zip(found, recorded, strict=True)]
    assert max(map(abs, residuals)) < each, residuals
    assert abs(statistics.fmean(residuals)) < mean, residuals


if __name__ == "__main__":
    import torch
    import transformers

    with tempfile.TemporaryDirectory() as name:
        made = {run: losses(Path(name), run) for run in NAMES}
    record = {
        "made by": "PYTHONPATH=tests:scripts python tests/training/test_trajectory.py",
        "machine": platform.machine(),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "losses": {run: [round(loss, 7) for loss in each] for run, each in made.items()},
    }
    RECORD.write_text(json.dumps(record, indent=1) + "\n")
