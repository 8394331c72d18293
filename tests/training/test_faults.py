"""What a user sees when the machine, a disk or a file fails in the middle of a run, through the
real command line: one sentence with cause and remedy, an exit code, no traceback."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_line import ENVIRONMENT, ROOT, Run, remarks
from PIL import Image
from test_run import write_config

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc, takes rights away"),
]
ALONE = {**ENVIRONMENT, "OMP_NUM_THREADS": "1"}


def write_pictures(folder: Path, count: int = 40) -> Path:
    folder.mkdir(parents=True)
    for i in range(count):
        Image.new("RGB", (40, 40), (6 * i, 100, 50)).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"colour number {i}")
    return folder


def write_long_config(folder: Path, source: Path, **changes: Any) -> Path:
    """A run that is still going when it is looked at."""
    return write_config(
        folder, data__train=str(source), data__evaluate={}, train__batch_size=8,
        train__steps=100_000, train__save_every=100_000, preprocess__vocab_size=600, **changes,
    )  # fmt: skip


def ended(config: Path, harm: Callable[[int], None]) -> tuple[int, str]:
    """Exit code and stderr of a run that is harmed after its first steps."""
    process = subprocess.Popen(
        [sys.executable, "-m", "clipkit", "train", str(config)],
        cwd=ROOT, env=ALONE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        metrics = config.parent / "run" / "metrics.jsonl"
        deadline = time.monotonic() + 90
        while not (metrics.exists() and metrics.read_text().count("\n") > 3):
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.1)
        harm(process.pid)
        said = process.communicate(timeout=90)[1]
    finally:
        process.kill()
    return process.returncode, said


def the_sentence(said: str) -> str:
    """The one line that speaks of the end."""
    assert "Traceback" not in said, said
    lines = [line for line in remarks(said) if line.startswith("clipkit: ")]
    assert len(lines) == 1, said
    return lines[0]


def assert_status(config: Path, code: int) -> None:
    status = json.loads((config.parent / "run" / "status.json").read_text())
    assert status["exit_code"] == code


def test_a_killed_worker_is_a_sentence_with_cause_and_remedy(tmp_path: Path) -> None:
    config = write_long_config(tmp_path, write_pictures(tmp_path / "in"), data__workers=2)
    pids: list[int] = []

    def kill_one(trainer: int) -> None:
        for task in Path(f"/proc/{trainer}/task").iterdir():
            pids.extend(map(int, (task / "children").read_text().split()))
        workers = [p for p in pids if b"clipkit" in Path(f"/proc/{p}/cmdline").read_bytes()]
        assert len(workers) == 2
        os.kill(workers[0], signal.SIGKILL)

    code, said = ended(config, kill_one)
    assert code == 3, said
    sentence = the_sentence(said)
    assert "data.workers: a loader worker" in sentence
    assert "was killed, most likely because the machine or container ran out of memory" in sentence
    assert "lower data.workers or train.batch_size" in sentence
    assert "run the same command to resume" in sentence
    assert_status(config, 3)
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]


def test_images_deleted_in_the_middle_of_a_run_are_counted_and_named(tmp_path: Path) -> None:
    source = write_pictures(tmp_path / "in")
    config = write_long_config(tmp_path, source)

    def delete(_: int) -> None:
        for path in source.glob("*.png"):
            path.unlink()

    code, said = ended(config, delete)
    assert code == 3, said
    sentence = the_sentence(said)
    assert f"{source}/" in sentence
    assert "missing image file" in sentence
    assert "more than data.max_skip_share=0.05 allows" in sentence
    assert_status(config, 3)


def test_a_shard_that_shrinks_in_the_middle_of_a_run_ends_it(tmp_path: Path) -> None:
    source = tmp_path / "train.tar"
    pictures = write_pictures(tmp_path / "in")
    subprocess.run(["tar", "cf", source, *sorted(os.listdir(pictures))], cwd=pictures, check=True)
    config = write_long_config(tmp_path, source)
    code, said = ended(config, lambda _: os.truncate(source, 1000))
    assert code == 3, said
    sentence = the_sentence(said)
    assert str(source) in sentence
    assert "shard cut short" in sentence
    assert_status(config, 3)


def test_a_file_without_read_permission_is_named(tmp_path: Path) -> None:
    pictures = write_pictures(tmp_path / "in")
    shard = tmp_path / "train.tar"
    subprocess.run(["tar", "cf", shard, *sorted(os.listdir(pictures))], cwd=pictures, check=True)
    shard.chmod(0)
    (pictures / "3.png").chmod(0)
    (pictures / "4.txt").chmod(0)
    command = [sys.executable, "-m", "clipkit", "train"]
    if os.geteuid() == 0:  # root reads all, unless that right is taken away
        if shutil.which("setpriv") is None:
            pytest.skip("taking root's rights away takes setpriv")
        command = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", *command]

    def run(source: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
        config = write_long_config(tmp_path, source)
        return subprocess.run(
            [*command, str(config), *arguments],
            cwd=ROOT, env=ALONE, capture_output=True, text=True, timeout=120,
        )  # fmt: skip

    refused = run(shard)
    assert refused.returncode == 3, refused.stderr
    sentence = the_sentence(refused.stderr)
    assert sentence == f"clipkit: {shard}: cannot be read (Permission denied)."
    counted = run(pictures)
    assert counted.returncode == 3, counted.stderr
    sentence = the_sentence(counted.stderr)
    assert "unreadable image file" in sentence
    assert "unreadable caption file" in sentence
    assert "more than data.max_skip_share=0.05 allows" in sentence


def test_where_no_index_can_be_kept_a_line_says_so_and_the_run_goes_on(
    clipkit: Run, tmp_path: Path
) -> None:
    source = tmp_path / "train.tar"
    pictures = write_pictures(tmp_path / "in")
    subprocess.run(["tar", "cf", source, *sorted(os.listdir(pictures))], cwd=pictures, check=True)
    # A folder stands where the index belongs, and a file where the cache does.
    (tmp_path / ".train.tar.clipkit-index.npz" / "x").mkdir(parents=True)
    (tmp_path / "cache").write_text("")
    config = write_long_config(tmp_path, source)
    result = clipkit("train", config, "--dry-run", env={"XDG_CACHE_HOME": str(tmp_path / "cache")})
    assert result.returncode == 0, result.stderr
    said = f"clipkit: {source}: its index cannot be kept (Not a directory); it is made anew at each"
    assert the_sentence(result.stderr).startswith(said)
    assert len(remarks(result.stderr)) == 1
    assert "40 in 1 shards" in result.stdout


# The index is larger than a file may become: what writing meets on a full disk.
FULL_DISK = """
import resource, signal, sys
from clipkit.cli import main  # warnings in one line
from clipkit.config.schema import SourceConfig
from clipkit.data import open_source

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))
try:
    main(["--version"])
except SystemExit:
    pass
reader = open_source(SourceConfig(path=sys.argv[1]), progress=False)
print(len(reader), reader[39].caption)
"""


def test_a_full_disk_under_the_index_is_a_line_and_leaves_nothing_half(tmp_path: Path) -> None:
    source = tmp_path / "data" / "train.tar"
    pictures = write_pictures(tmp_path / "in")
    source.parent.mkdir()
    subprocess.run(["tar", "cf", source, *sorted(os.listdir(pictures))], cwd=pictures, check=True)
    cache = tmp_path / "cache"
    result = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(source)],
        cwd=ROOT, env={**ALONE, "XDG_CACHE_HOME": str(cache)}, capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "40 colour number" in result.stdout
    assert "its index cannot be kept (File too large)" in the_sentence(result.stderr)
    assert [path.name for path in source.parent.iterdir()] == ["train.tar"]
    assert not [path for path in cache.rglob("*") if path.is_file()]
