"""What a run would take: memory as measured, step time by the formulas."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import plan_report
import pytest
from command_line import Run
from PIL import Image
from test_run import write_config

from clipkit.config import load_config
from clipkit.errors import DataError
from clipkit.training.plan import dry_run
from clipkit.training.scaling import RANKS, Rates, Work, step_time

WORK = Work(
    batch_size=32768,
    embed_dim=512,
    flops=3e10,
    forwards=1,
    parts=1,
    weights=6e8,
    gradients=6e8,
    layers=24,
)
H100 = Rates(towers=4e14, loss=2.5e13, node=4e11, network=4e11, per_node=8)


@pytest.mark.long
def test_expected_memory_is_within_15_per_cent_of_a_real_run() -> None:
    changes = {"train.precision": "fp32", "train.batch_size": 128}
    expected = plan_report.estimate(plan_report.SMALL, changes)
    nothing = plan_report.measured(plan_report.NOTHING, {}, plan_report.TENSORS_ONLY)
    measured = plan_report.measured(plan_report.SMALL, changes, plan_report.TENSORS_ONLY)
    assert expected == pytest.approx(measured - nothing, rel=plan_report.WITHIN)


@pytest.mark.slow
def test_the_plan_goes_from_1_to_4096_gpus(clipkit: Run, tmp_path: Path) -> None:
    Image.new("RGB", (32, 32), "red").save(tmp_path / "red.png")
    rows = "".join(f"red.png,red number {number}\n" for number in range(4096))
    (tmp_path / "pairs.csv").write_text(f"image,caption\n{rows}")
    config = write_config(
        tmp_path,
        data__train=str(tmp_path / "pairs.csv"),
        data__evaluate={},
        plan={"gpu_tflops": 989, "gpus_per_node": 4},
        train__batch_size=4096,
    )
    result = clipkit("train", config, "--dry-run")
    assert result.returncode == 0, result.stderr
    assert "GPUs of 989 TFLOP/s, 40% of it used" in result.stdout
    assert "4 GPUs a node" in result.stdout
    rows = [line.split() for line in result.stdout.splitlines() if "|" in line]
    assert [int(row[0]) for row in rows[2:]] == list(RANKS)
    memory = [float(row[8]) for row in rows[2:]]  # fsdp
    assert memory == sorted(memory, reverse=True)


def test_a_machine_by_itself_is_planned_for_alone(tmp_path: Path) -> None:
    config = load_config(write_config(tmp_path, data__evaluate={}))
    lines = (dry_run(config) or "").splitlines()
    assert not any("GPUs" in line for line in lines)
    (time,) = [line.split() for line in lines if line.startswith("time ")]
    assert time[2:5] == ["s", "a", "step,"]
    assert float(time[5]) == pytest.approx(9 * float(time[1]) / 3600, rel=0.01)
    (precision,) = [line.split() for line in lines if line.startswith("precision ")]
    assert precision[1] == "fp32"


def test_a_batch_without_a_usable_sample_is_no_plan(tmp_path: Path) -> None:
    table = "image,caption\n" + "".join(f"{n}.jpg,a word\n" for n in range(60))
    (tmp_path / "t.csv").write_text(table)
    config = load_config(
        write_config(tmp_path, data__evaluate={}, data__train=str(tmp_path / "t.csv"),
                     preprocess__vocab_size=600)
    )  # fmt: skip
    with pytest.raises(DataError, match=r"missing image file; none of the \d+ samples of a batch"):
        dry_run(config)


def test_one_gpu_computes_and_sends_nothing() -> None:
    one = step_time(WORK, 1, H100, "ddp")
    towers, loss = 32768 * 3e10 / 4e14, 8 * 32768**2 * 512 / 2.5e13
    assert one.seconds == pytest.approx(towers + loss)
    assert one.sent == 0


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_efficiency_falls_with_gpus_and_is_high_where_the_batch_is(kind: str) -> None:
    one = step_time(WORK, 1, H100, kind).seconds
    efficiency = [one / ranks / step_time(WORK, ranks, H100, kind).seconds for ranks in RANKS]
    assert efficiency == sorted(efficiency, reverse=True)
    assert efficiency[3] > 0.95
    assert efficiency[-1] < 0.5


def test_fsdp_sends_half_as_much_again_and_a_slow_network_shows() -> None:
    ddp, fsdp = (step_time(WORK, 64, H100, kind) for kind in ("ddp", "fsdp"))
    texts = 63 / 64 * 3 * 4 * 32768 * 512
    assert (fsdp.sent - texts) / (ddp.sent - texts) == pytest.approx(1.5)
    slow = dataclasses.replace(H100, network=1e10)
    assert step_time(WORK, 64, slow, "ddp").exposed > 10 * ddp.exposed
    assert step_time(WORK, 8, slow, "ddp") == step_time(WORK, 8, H100, "ddp")


def test_layers_in_bf16_and_muons_updates_count_as_they_are_sent(tmp_path: Path) -> None:
    """FSDP sends less in bf16, but not what is in no layer, nor gradients; DDP sends the same."""

    def sent(**changes: object) -> list[float]:
        path = write_config(tmp_path, data__evaluate={}, plan={"gpus_per_node": 4}, **changes)
        said = (dry_run(load_config(path)) or "").splitlines()
        row = next(line.split() for line in said if line.split()[:2] == ["2", "24"])
        return [float(row[4]), float(row[9])]  # MiB, ddp and fsdp

    plain, bf16 = sent(train__precision="fp32"), sent(train__precision="bf16")
    muon = sent(train__precision="bf16", optim__name="muon")
    assert plain[0] == bf16[0] < muon[0]
    assert 0.7 * plain[1] < bf16[1] < plain[1]
    assert muon[1] - bf16[1] == pytest.approx(2 * (muon[0] - bf16[0]), abs=0.2)


def test_stages_are_planned_for_the_largest_and_counted_all(tmp_path: Path) -> None:
    stages = [{"share": 0.5, "image_size": 16, "context_length": 8}, {"share": 0.5}]
    config = load_config(write_config(tmp_path, data__evaluate={}, train__stages=stages))
    lines = (dry_run(config) or "").splitlines()
    each = [float(line.split()[0]) for line in lines if line.endswith(" GFLOPs a sample")]
    assert each[0] < each[1] / 2
    assert any("steps 5 to 9, the largest stage" in line for line in lines)
