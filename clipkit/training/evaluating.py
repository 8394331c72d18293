"""How good weights are while they are trained: retrieval on splits, and the tasks of a suite."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable
from pathlib import Path

from clipkit.data import MixtureReader
from clipkit.encoder import Encoder
from clipkit.errors import Preempted
from clipkit.evaluation.caveats import IN_TRAINING, caveats
from clipkit.evaluation.embedding import Job
from clipkit.evaluation.results import TABLE, TaskResult
from clipkit.evaluation.retrieval import evaluate_retrieval
from clipkit.evaluation.run_suite import headline, remarks, run_suite, save_results
from clipkit.evaluation.suite import Suite
from clipkit.evaluation.trained_on import TrainedOn
from clipkit.interrupt import Stop
from clipkit.models import DualEncoder
from clipkit.training.distributed import gathered
from clipkit.training.ema import WeightAverage
from clipkit.training.faults import raise_if_asked
from clipkit.training.samples import HOLDOUT
from clipkit.training.start import Start
from clipkit.training.tracking import RunLog


class Evaluation:
    """Measures the weights of a run, or their average where there is one, and tells.

    Args:
        begun: the splits, the suite and the options.
        model: in training.
        encoder: the same model, as it embeds.
        average: of its weights.
        log: where metrics go.
        stop: whether the run was asked to end.
    """

    def __init__(
        self,
        begun: Start,
        model: DualEncoder,
        encoder: Encoder,
        average: WeightAverage | None,
        log: RunLog,
        stop: Stop,
    ) -> None:
        config, accelerator = begun.config, begun.accelerator
        self._begun, self._model, self._average = begun, model, average
        self._log, self._stop = log, stop
        self._job = Job(
            encoder,
            batch_size=config.eval.batch_size,
            workers=config.data.workers,
            max_image_pixels=config.data.max_image_pixels,
            rank=accelerator.process_index,
            world_size=accelerator.num_processes,
        )
        self._tasks: list[TaskResult] = []
        self._said: set[str] = set()
        self._in_training: dict[str, int] = {}
        self._trained_on = TrainedOn(begun.reader)
        if accelerator.is_main_process:
            self._look_for_training_images()

    def measure(self, step: int) -> dict[str, dict[str, float]]:
        """The metrics of each split, after so many steps; all ranks must call it.

        Raises:
            Preempted: the run was asked to end; its text is the signal's number, on all ranks.
            ClipkitError: what is evaluated on cannot be read; the same on all ranks.
        """
        asked = self._model.register_forward_pre_hook(lambda *_: raise_if_asked(self._stop))
        try:
            results = self._measure(step)
            if self._average is not None:
                with self._average.in_place_of_weights():
                    results = self._measure(step, ema=True)
        finally:
            asked.remove()
        return results

    def _measure(self, step: int, *, ema: bool = False) -> dict[str, dict[str, float]]:
        results = {}
        for name, reader in self._begun.eval_readers.items():
            with gathered(self._model):
                results[name] = evaluate_retrieval(self._job, reader)
            if name in self._in_training:
                results[name][IN_TRAINING] = self._in_training[name]
            self._log.evaluation(step, name, results[name], ema=ema)
            self._say_once(f"{name}: {each}" for each in caveats(results[name]))
        self._tasks = []
        if (suite := self._begun.suite) is not None:
            with gathered(self._model):
                for result in run_suite(suite, self._job, self._trained_on.remark):
                    if result is not None:  # on the main process
                        self._tasks.append(result)
                        line = headline(suite, result)
                        self._log.task(step, suite.name, result, line, ema=ema)
                        self._say_once(remarks(result))
        return results

    def _look_for_training_images(self) -> None:
        """Counts the images of each split that are trained on; of the split that is held back
        there are none, unless another source of a mixture has them."""
        reader = self._begun.reader
        for name, split in self._begun.eval_readers.items():
            if name == HOLDOUT and not isinstance(reader, MixtureReader):
                continue
            if count := self._trained_on.count(split):
                self._in_training[name] = count
            if remark := self._trained_on.remark(split):
                self._log.say(f"{name}: {remark}")

    def _say_once(self, sentences: Iterable[str]) -> None:
        """Tells the reader of the metrics what they must know, the first time."""
        for sentence in sentences:
            if sentence not in self._said:
                self._said.add(sentence)
                self._log.say(sentence)

    def save(self, folder: Path, weights: Path) -> None:
        """Writes what the suite measured last to ``eval/SUITE`` of the run; on the main process.

        Args:
            folder: the run's.
            weights: the folder of the model that was measured.
        """
        suite = self._begun.suite
        if suite is None or not self._job.main:
            return
        save_results(
            *results_places(folder, suite),
            suite,
            self._tasks,
            encoder=self._job.encoder,
            command=shlex.join(["clipkit", *sys.argv[1:]]),
            ranks=self._job.world_size,
            weights=weights,
        )


def results_places(folder: Path, suite: Suite) -> tuple[Path, Path]:
    """Where what a suite measures of a run is written: its folder, and the table of all suites."""
    return folder / "eval" / suite.name, folder / "eval" / TABLE


def stopped_by(error: Preempted) -> int:
    """The signal that ended ``Evaluation.measure``."""
    return int(str(error))
