"""What a run says of itself while it goes: lines that fit, rates, spikes."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import ENVIRONMENT, ROOT, Run, remarks
from PIL import Image
from test_run import said, write_config

from clipkit.config.schema import ModelConfig, PreprocessConfig, TowerConfig, VisionConfig
from clipkit.data.tokenize import train_tokenizer
from clipkit.models import build_model
from clipkit.training.ceiling import Ceiling, find_ceiling
from clipkit.training.distributed import Ranks
from clipkit.training.meter import Meter
from clipkit.training.spikes import Spikes

COLOURS = ("red", "green", "blue", "yellow", "black", "white", "grey", "purple")
WRONG = 60  # the step whose captions are of other images


def read(run: Path, kind: str) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [record for record in records if record["kind"] == kind]


@pytest.fixture(scope="module")
def spiked(clipkit: Run, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Seventy equal batches of eight colours, in order, but for one with its captions mixed up;
    the run's folder, and what it said."""
    folder = tmp_path_factory.mktemp("spiked")
    rows = ["image,caption"]
    for colour in COLOURS:
        Image.new("RGB", (32, 32), colour).save(folder / f"{colour}.png")
    for step in range(70):
        turn = 3 if step == WRONG - 1 else 0
        for number, colour in enumerate(COLOURS):
            rows.append(f"{colour}.png,{COLOURS[(number + turn) % len(COLOURS)]}")
    (folder / "pairs.csv").write_text("\n".join(rows))
    config = write_config(
        folder,
        data__train=str(folder / "pairs.csv"),
        data__evaluate={},
        data__lanes=1,
        data__shuffle_chunk=560,
        data__shuffle_window=1,
        model__vision__dropout=0.0,
        model__text__dropout=0.0,
        optim__lr=1e-3,
        optim__layer_decay=0.9,
        train__batch_size=8,
        train__steps=70,
        train__save_every=100,
    )
    result = clipkit("train", config)
    assert result.returncode == 0, result.stderr
    return folder / "run", result.stderr


@pytest.mark.slow
def test_a_spike_is_said_and_recorded(spiked: tuple[Path, str]) -> None:
    run, lines = spiked
    first = read(run, "spike")[0]
    assert first["step"] == WRONG
    assert first["loss"] > 2 * first["median_loss"]
    assert first["grad_norm"] > 0
    assert 0 <= first["data_wait"] <= 1
    line = next(line for line in lines.splitlines() if line.startswith(f"step {WRONG}: spike: "))
    assert "median of recent steps" in line
    assert f">{WRONG}<" in (run / "report.html").read_text()


@pytest.mark.slow
def test_records_hold_rates_and_what_they_are_shares_of(spiked: tuple[Path, str]) -> None:
    run, _ = spiked
    (start,) = read(run, "start")
    assert start["ceiling_tflops"] > 0
    assert "measured" in start["ceiling_source"]
    ceiling = start["ceiling_tflops"]
    for record in read(run, "train"):
        # A colour is one token, between the start and the end.
        tokens = record["tokens_per_second"] / record["images_per_second"]
        assert tokens == pytest.approx(3, rel=0.01)
        ceiling = record.get("ceiling_tflops", ceiling)  # it was measured beside a busy process
        assert record["utilisation"] == pytest.approx(record["tflops"] / ceiling, abs=0.01)
        assert record["utilisation"] <= 1
        assert 0.1 < record["memory_gib"] < 8
        # Two layers in the image tower: its embeddings learn three steps slower than its end.
        assert record["lr_highest"] == record["lr"]
        assert record["lr_lowest"] == pytest.approx(0.9**3 * record["lr"])


@pytest.mark.slow
def test_log_lines_fit_100_columns(spiked: tuple[Path, str], clipkit: Run, tmp_path: Path) -> None:
    names = ("a_source_with_quite_a_long_name", "another_one_of_that_kind", "third")
    mix = dict.fromkeys(names, str(spiked[0].parent / "pairs.csv"))
    config = write_config(tmp_path, data__train={}, data__mix=mix, train__steps=1)
    result = clipkit("train", config)
    assert result.returncode == 0, result.stderr
    assert "third 33.33%" in said(result)
    lines = [*remarks(spiked[1]), *remarks(result.stderr)]
    assert max(len(line) for line in lines) <= 100


def test_spikes_are_told_from_noise_and_from_a_falling_loss() -> None:
    spikes, noise = Spikes(), random.Random(0)
    for step in range(500):
        loss = 5 * 0.99**step + 0.5 + noise.gauss(0, 0.1)
        assert not spikes.find(loss=loss, grad_norm=1 + noise.gauss(0, 0.2))
    assert spikes.find(loss=3.0, grad_norm=1.0).keys() == {"loss"}
    assert spikes.find(loss=0.5, grad_norm=50.0).keys() == {"grad_norm"}
    assert not spikes.find(loss=float("nan"), grad_norm=float("inf"))
    assert not spikes.find(loss=0.5, grad_norm=1.0)


def test_the_ceiling_is_measured_in_a_moment_and_is_higher_than_a_slow_product() -> None:
    ceiling = find_ceiling(torch.device("cpu"), "fp32")
    assert "measured" in ceiling.source
    assert "fp32" in ceiling.source
    assert ceiling.flops_per_second > 1e9


@pytest.fixture
def tiny_meter() -> Meter:
    preprocess = PreprocessConfig(image_size=16, context_length=8)
    tokenizer = train_tokenizer(["a cat"], vocab_size=600, context_length=8)
    vision = VisionConfig(width=64, layers=1, patch_size=8)
    config = ModelConfig(embed_dim=8, vision=vision, text=TowerConfig(width=64, layers=1))
    model = build_model(config, preprocess, tokenizer, init_temperature=0.07, seed=0)
    return Meter(model, Ceiling(1e12, ""), Ranks(), lambda: Ceiling(1e12, ""))


@pytest.mark.parametrize(("again", "share"), [(1e-6, 1.0), (1e30, 0.0)])
def test_a_ceiling_measured_too_low_is_raised(
    again: float, share: float, tiny_meter: Meter
) -> None:
    """A busy process beside the measurement made it so; a share above 100% is no share."""
    meter = tiny_meter
    meter.ceiling = Ceiling(1e-6, "measured beside a busy process")
    meter.measure = lambda: Ceiling(again, "measured again")
    meter.flops, meter.last = 1e9, meter.begin + 1
    rates = meter.rates()
    assert rates["utilisation"] == pytest.approx(share)
    assert rates["ceiling_tflops"] == pytest.approx(max(again, 1e9) / 1e12, rel=0.1)
    meter.flops = 5e8
    assert meter.rates()["utilisation"] == pytest.approx(share / 2)
    assert "ceiling_tflops" not in meter.rates()


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [pytest.param(0, marks=pytest.mark.long), 2])
def test_a_profile_says_where_the_time_goes_and_leaves_the_run_alone(
    spiked: tuple[Path, str], clipkit: Run, ranks: int
) -> None:
    folder = spiked[0]

    def files() -> dict[Path, bytes]:
        found = [p for p in folder.rglob("*") if p.is_file() and "profile" not in p.parts]
        return {path: path.read_bytes() for path in found}

    before = files()
    result = clipkit("train", folder.parent / "config.yaml", "--profile", ranks=ranks)
    assert result.returncode == 0, result.stderr
    lines = [line.rsplit(maxsplit=2) for line in result.stdout.splitlines() if line.endswith("%")]
    parts = {name: float(milliseconds) for name, milliseconds, _ in lines}
    whole = parts.pop("a step")
    assert sum(parts.values()) == pytest.approx(whole, rel=0.01, abs=1)
    towers = ("image tower, forward", "text tower, forward")
    for name in ("waiting for data", *towers, "loss", "backward", "clipping", "optimizer"):
        assert parts[name] > 0
    assert ("all-reduce of gradients" in parts) == (ranks == 2)
    traces = sorted((folder / "profile").glob("trace-rank-*.json" if ranks else "trace.json"))
    assert len(traces) == max(ranks, 1)
    for trace in traces:
        names = {event.get("name") for event in json.loads(trace.read_text())["traceEvents"]}
        assert {*towers, "loss", "backward", "optimizer"} <= names
    assert files() == before


@pytest.mark.slow
def test_memory_is_of_the_run_whatever_started_it(tmp_path: Path) -> None:
    """A launcher that is large itself: what getrusage tells of a process begins at its parent's."""
    config = write_config(tmp_path, train__steps=1, data__evaluate={})
    command = [sys.executable, "-m", "clipkit", "train", str(config)]
    large = f"import subprocess; x = b'x' * {3 * 2**30}; subprocess.run({command!r}, check=True)"
    subprocess.run(
        [sys.executable, "-c", large], cwd=ROOT, env={**ENVIRONMENT, "OMP_NUM_THREADS": "1"},
        check=True, capture_output=True,
    )  # fmt: skip
    (record,) = read(tmp_path / "run", "train")
    assert 0.2 < record["memory_gib"] < 2
