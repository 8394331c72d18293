"""A model's run → how many images of an evaluation it was trained on."""

from __future__ import annotations

import json
from pathlib import Path

from clipkit.config import load_config
from clipkit.data import Reader
from clipkit.data.overlap import shared_images, training_reader
from clipkit.encoder import Encoder
from clipkit.errors import ClipkitError, DataError

_MOST_SAMPLES = 20_000_000  # of the training data, whose index is read
_NOT_COMPARED = (
    "its images are not compared with the training data, which is remote, gone or too large"
)


class TrainedOn:
    """The training data that evaluated images are looked for in.

    Args:
        training: what is trained on; None where it is not known.
        told: whether to say where images cannot be compared.
    """

    def __init__(self, training: Reader | None, *, told: bool = True) -> None:
        self._training, self._told = training, told

    @classmethod
    def of_model(cls, encoder: Encoder) -> TrainedOn:
        """The data of the run that a model or checkpoint lies in, by its config. Of a model that
        lies in none nothing is known, and nothing is said."""
        run = _run_of(encoder.folder) if Path(encoder.name or "").is_dir() else None
        if run is None:
            return cls(None, told=False)
        try:
            config = load_config(run / "config.yaml")
            return cls(training_reader(config) if _samples(run) <= _MOST_SAMPLES else None)
        except (ClipkitError, OSError):
            return cls(None)

    def count(self, reader: Reader) -> int | None:
        """How many different images of a source are trained on; None where it is not known."""
        if self._training is None:
            return None
        try:
            return shared_images(reader, self._training)
        except (DataError, OSError):
            return None

    def remark(self, reader: Reader) -> str:
        """A sentence on the images that are trained on; nothing where there are none."""
        count = self.count(reader)
        if count is None:
            return _NOT_COMPARED if self._told else ""
        return f"{count:,} of its images are in the training data" if count else ""


def _run_of(model: Path) -> Path | None:
    """The run that a model's folder lies in: ``RUN/model`` or ``RUN/checkpoints/STEP/model``."""
    model = model.absolute()
    places = [model.parent] if model.name == "model" else []
    if places and model.parent.parent.name == "checkpoints":
        places.append(model.parents[2])
    return next((each for each in places if (each / "config.yaml").is_file()), None)


def _samples(run: Path) -> int:
    """How many samples the run trained on, as it noted; 0 where it did not."""
    try:
        with (run / "metrics.jsonl").open(encoding="utf-8") as file:
            return int(json.loads(file.readline()).get("samples", 0))
    except (OSError, ValueError, AttributeError, TypeError):
        return 0
