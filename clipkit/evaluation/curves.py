"""A run's ``metrics.jsonl`` → its curves, as a figure in a notebook, as a frame."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipkit.display.console import format_table
from clipkit.display.curves import Series, chart
from clipkit.errors import CheckpointError
from clipkit.evaluation.report import read_metrics, split_name

if TYPE_CHECKING:
    import pandas as pd

_WAYS = {"text_to_image": "text → image", "image_to_text": "image → text"}
_PRINTED = 20  # rows in a terminal
# Colours of its own on white, and rules for nothing else on the page.
_LOOK = "display: flex; flex-wrap: wrap; gap: 16px; padding: 10px; background: #fff;"


@dataclass(repr=False, eq=False)
class TrainingCurves:
    """What a run recorded as it went; a notebook shows it as curves.

    Attributes:
        train: the records of training steps, in order; see ``metrics.jsonl``.
        evals: those of evaluations.
    """

    train: list[dict[str, Any]]
    evals: list[dict[str, Any]]

    def to_pandas(self) -> pd.DataFrame:
        """A row a record of training, ``step`` as the index: loss, scale, learning rate …"""
        import pandas as pd

        return pd.DataFrame(self.train).drop(columns="kind").set_index("step")

    def __repr__(self) -> str:
        step = max(1, -(-len(self.train) // _PRINTED))
        shown = [*self.train[:-1:step], self.train[-1]]
        rows = [[f"{r['step']:,}", f"{r['loss']:.3f}", f"{r['scale']:.1f}"] for r in shown]
        return format_table(["step", "loss", "scale"], rows, right=(0, 1, 2))

    def _repr_html_(self) -> str:
        charts = [
            chart("Loss", [_series(self.train, "loss", "loss")]),
            chart(
                "Right within the batch",
                [_series(self.train, f"accuracy_{key}", words) for key, words in _WAYS.items()],
                share=True,
            ),
        ]
        for split in dict.fromkeys(split_name(record) for record in self.evals):
            here = [record for record in self.evals if split_name(record) == split]
            lines = [
                _series(here, f"{key}_R@{k}", f"{words} R@{k}")
                for key, words in _WAYS.items()
                for k in (1, 5)
            ]
            charts.append(chart(f"Retrieval on {split}", lines, share=True))
        charts.append(chart("Scale (inverse temperature)", [_series(self.train, "scale", "scale")]))
        drawn = "".join(f"<div>{each.svg}</div>" for each in charts if each is not None)
        return f'<div style="{_LOOK}">{drawn}</div>'


def training_curves(run: str | Path) -> TrainingCurves:
    """The curves of a run, finished or not.

    Example:
        >>> clipkit.training_curves("runs/emoji").to_pandas().loss.min()
        0.048

    Args:
        run: its folder.

    Raises:
        CheckpointError: nothing is recorded there.
    """
    path = Path(run) / "metrics.jsonl"
    records = read_metrics(path)
    train = [record for record in records if record.get("kind") == "train"]
    if not train:
        raise CheckpointError(f"{path}: no training step is recorded there; name a run's folder")
    return TrainingCurves(train, [r for r in records if r.get("kind") == "eval"])


def _series(records: list[dict[str, Any]], key: str, name: str) -> Series:
    there = [record for record in records if isinstance(record.get(key), int | float)]
    return Series(name, [float(r["step"]) for r in there], [float(r[key]) for r in there])
