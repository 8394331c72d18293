"""Runs → what they are, side by side: size, steps, time, machine, and where configs differ."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from safetensors import safe_open

from clipkit.config import flatten
from clipkit.display.page import Cell, note, table
from clipkit.evaluation.report.runs import Run, is_finite, value_at
from clipkit.evaluation.report.tables import show

_MOST_KEYS = 60  # of configs that differ


def runs_parts(runs: Sequence[Run]) -> list[str]:
    """A table with a column a run, and one of the keys in which their configs differ; nothing
    where nothing is known of any."""
    rows: list[list[str | Cell]] = []
    for name, tell in _FACTS:
        cells = [tell(run) for run in runs]
        if any(cells):
            rows.append([name, *(cell or "–" for cell in cells)])
    parts = []
    if len(rows) > 1 or len(runs) > 1:  # more than where it is
        header = ["", *(run.name for run in runs)]
        parts.append(table(header, rows, texts=range(len(header))))
    if len(runs) > 1:
        parts.append(_differences(runs))
    return parts


def seconds_of_training(run: Run) -> float:
    """Time that was spent in steps, without evaluations: pairs of each record by its rate."""
    batch, last, seconds = _batch_size(run), 0.0, 0.0
    for record in run.records:
        if record.get("kind") == "start":
            last = record["step"]
        elif record.get("kind") == "train":
            rate = record.get("images_per_second")
            if is_finite(rate) and rate > 0:
                seconds += max(0, record["step"] - last) * batch / rate
            last = record["step"]
    return seconds


def num_parameters(run: Run) -> int | None:
    """Of its model: as a start or a suite noted it, else counted in the file of the weights."""
    noted = [record.get("parameters") for record in run.of_kind("start")]
    noted += [suite.about.get("model", {}).get("parameters") for suite in run.suites.values()]
    for value in noted:
        if isinstance(value, int):
            return value
    for path in _weights(run):
        try:
            with safe_open(path, framework="numpy") as file:
                shapes = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118
        except Exception:  # safetensors raises a kind of its own
            continue
        return sum(_product(shape) for shape in shapes)
    return None


def _weights(run: Run) -> Iterator[Path]:
    yield run.model_folder() / "model.safetensors"
    yield from sorted(run.folder.glob("checkpoints/step-*/model/model.safetensors"), reverse=True)


def _product(shape: Sequence[int]) -> int:
    product = 1
    for size in shape:
        product *= size
    return product


def _differences(runs: Sequence[Run]) -> str:
    """A row for each key of the configs that is not the same in all."""
    with_config = [run for run in runs if run.config]
    if len(with_config) < 2:
        return ""
    leaves = [dict(flatten(run.config)) for run in with_config]
    keys = list(dict.fromkeys(key for each in leaves for key in each))
    rows = []
    for key in keys:
        values = [_plain(each[key]) if key in each else "not there" for each in leaves]
        if key != "output" and len(set(values)) > 1:
            rows.append([key, *values])
    if not rows:
        return note("The configs of these runs are the same, but for where they write.")
    more = len(rows) - _MOST_KEYS
    header = ["config", *(run.name for run in with_config)]
    body = table(header, rows[:_MOST_KEYS], texts=range(len(header)))
    return body + (note(f"And {more:,} more keys differ.") if more > 0 else "")


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _batch_size(run: Run) -> int:
    size = value_at(run.config, "train.batch_size")
    return size if isinstance(size, int) else 0


def _last(run: Run) -> dict[str, Any]:
    train = run.of_kind("train")
    return train[-1] if train else {}


def _state(run: Run) -> str:
    state = str(run.status.get("state") or "")
    message = run.status.get("message")
    return f"{state}: {message}" if message else state


def _model(run: Run) -> str:
    if pretrained := value_at(run.config, "model.pretrained"):
        return f"from {pretrained}"
    towers = []
    for key, words in (("vision", "image"), ("text", "text")):
        tower = value_at(run.config, f"model.{key}")
        if isinstance(tower, dict):
            patch = f", patches of {tower['patch_size']}" if "patch_size" in tower else ""
            towers.append(f"{words}: {tower.get('layers')} × {tower.get('width')}{patch}")
    dimensions = value_at(run.config, "model.embed_dim")
    return "; ".join([*towers, f"{dimensions} dimensions"]) if towers else ""


def _data(run: Run) -> str:
    mix = value_at(run.config, "data.mix") or {}
    sources = (
        mix.values() if isinstance(mix, dict) and mix else [value_at(run.config, "data.train")]
    )
    return " + ".join(str(s.get("path")) for s in sources if isinstance(s, dict) and s.get("path"))


def _samples(run: Run) -> str:
    starts, last = run.of_kind("start"), _last(run)
    if starts and is_finite(starts[-1].get("samples")):
        return f"{starts[-1]['samples']:,}"
    if is_finite(last.get("epoch")) and last["epoch"] > 0 and _batch_size(run):
        return f"about {last['step'] * _batch_size(run) / last['epoch']:,.0f}"
    return ""


def _steps(run: Run) -> str:
    step = _last(run).get("step", run.status.get("step"))
    total = run.status.get("total_steps")
    if not is_finite(step):
        return ""
    batch = f" of {_batch_size(run):,} pairs" if _batch_size(run) else ""
    done = f"{step:,}" if not is_finite(total) or total == step else f"{step:,} of {total:,}"
    return done + batch


def _time(run: Run) -> str:
    seconds = seconds_of_training(run)
    if not seconds:
        return ""
    minutes, hours = seconds / 60, seconds / 3600
    if hours >= 48:
        return f"{hours / 24:.1f} days"
    return f"{hours:.1f} hours" if hours >= 2 else f"{minutes:.1f} minutes"


def _median(key: str, form: str) -> Callable[[Run], str]:
    def tell(run: Run) -> str:
        values = [r[key] for r in run.of_kind("train") if is_finite(r.get(key))]
        return format(statistics.median(values), form) if values else ""

    return tell


def _machine(run: Run) -> str:
    told = []
    starts = run.of_kind("start")
    if starts:
        ranks, device = starts[-1].get("ranks"), starts[-1].get("device")
        precision = value_at(run.config, "train.precision")
        kinds = " ".join(str(each) for each in (device, precision) if each)
        told.append(f"{ranks} × {kinds}" if kinds and ranks else kinds)
        if source := starts[-1].get("ceiling_source"):
            told.append(f"{show(starts[-1].get('ceiling_tflops'), '.3g')} TFLOP/s ({source})")
    for suite in [] if told else list(run.suites.values())[:1]:
        told.append(" ".join(str(suite.about.get(k, "")) for k in ("device", "precision")).strip())
    if host := run.status.get("host"):
        told.append(f"host {host}")
    return "; ".join(each for each in told if each)


def _weights_hash(run: Run) -> str:
    hashes = {str(s.about.get("model", {}).get("sha256") or "")[:12] for s in run.suites.values()}
    return ", ".join(sorted(hashes - {""}))


def _parameters(run: Run) -> str:
    number = num_parameters(run)
    return "" if number is None else f"{number / 1e6:,.2f} M"


_FACTS: tuple[tuple[str, Callable[[Run], str]], ...] = (
    ("folder", lambda run: str(run.folder)),
    ("state", _state),
    ("model", _model),
    ("parameters", _parameters),
    ("data", _data),
    ("samples", _samples),
    ("steps", _steps),
    ("time in steps", _time),
    ("images a second, median", _median("images_per_second", ",.0f")),
    ("waiting for data, median", _median("data_wait", ".1%")),
    ("machine", _machine),
    ("weights evaluated, SHA-256", _weights_hash),
)
