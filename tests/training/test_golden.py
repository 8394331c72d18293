"""A tiny run's loss curve against the one on record.

Made anew, where a change is meant to move it, by
``PYTHONPATH=tests:tests/training python tests/training/test_golden.py``.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from test_run import ROOT, Run, losses, write_config

GOLDEN = Path(__file__).with_name("golden_losses.json")
STEPS = 30
# Other versions and processors sum in another order; a change of the recipe, of the order of
# samples or of a default moves the curve by far more.
TOLERANCE = 5e-3


def _config(folder: Path) -> Path:
    return write_config(
        folder,
        model__vision__dropout=0.0,  # its random numbers may differ between versions of torch
        model__text__dropout=0.0,
        train__steps=STEPS,
        train__save_every=STEPS,
        data__evaluate={},
    )


@pytest.mark.slow
def test_loss_curve_is_the_golden_one(clipkit: Run, tmp_path: Path) -> None:
    result = clipkit("train", _config(tmp_path))
    assert result.returncode == 0, result.stderr
    found = [float.fromhex(loss) for _, loss in sorted(losses(tmp_path / "run").items())]
    golden = json.loads(GOLDEN.read_text())["losses"]
    assert len(found) == len(golden) == STEPS
    assert golden[-1] < 0.75 * golden[0]  # the record itself is of a run that learned
    assert found == pytest.approx(golden, rel=TOLERANCE)


if __name__ == "__main__":
    import torch
    import transformers

    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [sys.executable, "-m", "clipkit", "train", str(_config(Path(folder)))],
            cwd=ROOT,
            check=True,
        )
        curve = [float.fromhex(x) for _, x in sorted(losses(Path(folder) / "run").items())]
    record = {
        "made by": "PYTHONPATH=tests:tests/training python tests/training/test_golden.py",
        "machine": platform.machine(),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "losses": [round(loss, 6) for loss in curve],
    }
    GOLDEN.write_text(json.dumps(record, indent=1) + "\n")
