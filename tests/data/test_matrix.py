"""Every kind of source × workers × ranks × a kill and a resume elsewhere: the ids and the pixels
of each step are those of one process that nobody disturbed.

A run is killed in mid-step with SIGKILL; it goes on from the step before, with other workers and
other ranks, on a copy of the data at another place, with an empty cache. Two cells of each kind;
``CLIPKIT_MATRIX=full`` runs all sixteen (``scripts/test_long.sh``).
"""

from __future__ import annotations

import csv
import itertools
import json
import multiprocessing
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from file_server import Server
from matrix_rank import Rank, run
from sample_files import encoded, pair_members, photo, write_shards, write_tar

from clipkit.cli import main
from clipkit.data.tokenize import train_tokenizer

STEPS, HOLD = 11, 5  # 132 positions: three epochs of 40 samples and the beginning of a fourth
CELLS = list(itertools.product([(0, 1), (2, 1), (0, 2), (2, 2)], repeat=2))  # (workers, ranks)

_Source = dict[str, Any]


def _tars(folder: Path) -> _Source:
    write_shards(folder, [17, 9, 14])
    return {"train": {"path": "{at}/train-*.tar"}}


def _one_tar(folder: Path) -> _Source:
    """With images that cannot be read, and a caption that is blank."""
    bad = [("b.jpg", encoded()[:-300]), ("b.txt", b"broken"), ("c.jpg", encoded()), ("c.txt", b" ")]
    write_tar(folder / "a.tar", [*pair_members(38), *bad])
    return {"train": {"path": "{at}/a.tar"}, "max_skip_share": 0.2}


def _several_captions(folder: Path) -> _Source:
    members = []
    for i in range(40):
        fields = {"alt": [f"first {i}", f"second {i}"], "title": f"title {i}"}
        members += [
            (f"{i:02d}.png", encoded(photo(24, 20, seed=i), "PNG")),
            (f"{i:02d}.json", json.dumps(fields).encode()),
        ]
    write_tar(folder / "a.tar", members[:50])
    write_tar(folder / "b.tar", members[50:])
    return {"train": {"path": "{at}/{a,b}.tar", "caption": "json.alt,json.title"}}


def _classes(folder: Path) -> _Source:
    members = []
    for i in range(40):
        members += [(f"{i}.jpg", encoded(photo(24, 20, seed=i))), (f"{i}.cls", b"%d" % (i % 3))]
    write_tar(folder / "a.tar", members)
    (folder / "names.txt").write_text("cat\ndog\nhorse\n")
    templates = ["a photo of a {}", "a {}", "one {} outside"]
    names = "{at}/names.txt"
    return {"train": {"path": "{at}/a.tar", "templates": templates, "class_names": names}}


def _images(folder: Path, *, beside: bool = False) -> list[str]:
    for i in range(40):
        (folder / f"{i:02d}.jpg").write_bytes(encoded(photo(30, 20 + i % 7, seed=i)))
        if beside:
            (folder / f"{i:02d}.txt").write_text(f"picture number {i}")
    return [f"{i:02d}.jpg" for i in range(40)]


def _parquet(folder: Path) -> _Source:
    import pyarrow as pa
    import pyarrow.parquet as pq

    for number, rows in enumerate([range(25), range(25, 40)]):
        table = pa.table(
            {
                "image": [encoded(photo(24, 20, seed=i)) for i in rows],
                "text": [[f"one of {i}", f"other of {i}"] for i in rows],
            }
        )
        pq.write_table(table, folder / f"{number}.parquet", row_group_size=7)
    return {"train": {"path": "{at}/*.parquet"}}


def _csv(folder: Path) -> _Source:
    with (folder / "pairs.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows(
            [("image", "caption"), *((name, f"row {name}") for name in _images(folder))]
        )
    return {"train": {"path": "{at}/pairs.csv"}}


def _jsonl(folder: Path) -> _Source:
    lines = [json.dumps({"image": n, "a": f"a {n}", "b": f"b {n}"}) for n in _images(folder)]
    (folder / "pairs.jsonl").write_text("\n".join(lines))
    return {"train": {"path": "{at}/pairs.jsonl", "caption": "a,b"}}


def _folder(folder: Path) -> _Source:
    _images(folder, beside=True)
    return {"train": {"path": "{at}"}}


def _class_folders(folder: Path) -> _Source:
    for name in ("cat", "big_dog"):
        (folder / name).mkdir()
        _images(folder / name)
    return {"train": {"path": "{at}", "templates": ["a {}", "the {}"]}}


def _metadata(folder: Path) -> _Source:
    with (folder / "metadata.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file_name", "caption"])
        for name in _images(folder):  # two captions each
            writer.writerows([(name, f"this is {name}"), (name, f"that is {name}")])
    return {"train": {"path": "{at}"}}


def _arrow(folder: Path) -> _Source:
    import datasets

    rows = {
        "image": [photo(24, 20, seed=i) for i in range(40)],
        "caption": [f"row {i}" for i in range(40)],
    }
    features = datasets.Features({"image": datasets.Image(), "caption": datasets.Value("string")})
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(folder)
    return {"train": {"path": "{at}"}}


def _mixture(folder: Path) -> _Source:
    write_shards(folder / "tars", [11, 9])
    (folder / "table").mkdir()
    _csv(folder / "table")
    parts = {
        "tars": {"path": "{at}/tars/*.tar", "weight": 2},
        "table": {"path": "{at}/table/pairs.csv", "weight": 1.5},
    }
    return {"mix": parts}


def _filtered(folder: Path) -> _Source:
    write_shards(folder, [30, 25])
    wanted = {"min_edge": 38, "max_caption": 17}
    return {"train": {"path": "{at}/train-*.tar", "filter": wanted}}


def _listed(folder: Path) -> _Source:
    write_shards(folder, [30, 25])
    out = folder / "list.parquet"
    asked = ["--min-edge", "38", "--workers", "0"]
    assert main(["data", "filter", str(folder / "train-*.tar"), str(out), *asked]) == 0
    return {"train": {"path": "{at}/train-*.tar", "filter": {"list": "{at}/list.parquet"}}}


def _held_out(folder: Path) -> _Source:
    return {**_tars(folder), "holdout": 0.2}


def _indexed_url(folder: Path) -> _Source:
    write_shards(folder, [17, 9, 14])
    return {"train": {"path": "{url}/train-{000..002}.tar", "count": "index"}}


def _sized_url(folder: Path) -> _Source:
    write_shards(folder, [17, 9, 14])
    sizes = {"train-000.tar": 17, "train-001.tar": 9, "train-002.tar": 14}
    (folder / "sizes.json").write_text(json.dumps(sizes))
    return {"train": {"path": "{url}/train-{000..002}.tar"}}


def _estimated_url(folder: Path) -> _Source:
    write_shards(folder, [17, 9, 14])
    return {"train": {"path": "{url}/train-{000..002}.tar"}}


def _packed_url(folder: Path) -> _Source:
    """As ``clipkit data pack`` leaves it: sizes.json, and an index beside each shard."""
    write_shards(folder / "before", [40])
    packing = ["--shard-size", "30KB", "--workers", "0"]
    source = str(folder / "before" / "train-000.tar")
    assert main(["data", "pack", source, str(folder / "after"), *packing]) == 0
    shards = len(list((folder / "after").glob("*.tar")))
    assert shards > 1
    names = ",".join(sorted(path.name for path in (folder / "after").glob("*.tar")))
    return {"train": {"path": "{url}/after/{" + names + "}"}}


KINDS: list[Callable[[Path], _Source]] = [
    _tars, _one_tar, _several_captions, _classes, _parquet, _csv, _jsonl, _folder, _class_folders,
    _metadata, _arrow, _mixture, _filtered, _listed, _held_out, _indexed_url, _sized_url,
    _estimated_url, _packed_url,
]  # fmt: skip


def _cells(number: int) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """The short form takes two of each kind, all sixteen of them in turn."""
    if os.environ.get("CLIPKIT_MATRIX") == "full":
        return CELLS
    return [CELLS[(5 * number + 1) % 16], CELLS[(5 * number + 10) % 16]]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    captions = [f"caption number {i} of a photo" for i in range(50)]
    train_tokenizer(captions, vocab_size=600, context_length=16).save_pretrained(folder)
    return folder


class Place:
    """A copy of the data with a config, a server and caches of its own."""

    def __init__(self, root: Path, data: _Source, tokenizer: Path) -> None:
        self.root, self.server = root, Server(root / "data")
        at = {"{at}": str(root / "data"), "{url}": self.server.url}
        text = json.dumps(data)
        for name, value in at.items():
            text = text.replace(name, value)
        tree = {
            "output": str(root / "run"),
            "data": {
                **json.loads(text),
                "augment": {"crop_scale": [0.5, 1.0], "horizontal_flip": 0.5},
                "shuffle_chunk": 4,
                "shuffle_window": 16,
                "cache_gb": 0.001,
            },
            "preprocess": {"image_size": 32, "context_length": 16, "tokenizer": str(tokenizer)},
            "train": {"batch_size": 12, "steps": STEPS},
            "seed": 3,
        }
        self.config = root / "config.yaml"
        self.config.write_text(yaml.safe_dump(tree))
        self.runs = 0

    def read(
        self, workers: int, ranks: int, *, start: int = 0, hold: int | None = None
    ) -> list[dict[str, Any]]:
        """Reads as ``ranks`` processes, kills them after ``hold`` steps where that is asked for,
        and gives the steps that all of them wrote."""
        self.runs += 1
        context = multiprocessing.get_context("forkserver")
        whats = [
            Rank(
                config=str(self.config), cache=str(self.root / "cache"),
                trace=str(self.root / f"trace-{self.runs}-{rank}"), workers=workers,
                start=start, rank=rank, world_size=ranks, hold=hold,
            )
            for rank in range(ranks)
        ]  # fmt: skip
        processes = [context.Process(target=run, args=(what,)) for what in whats]
        for process in processes:
            process.start()
        try:
            for process, what in zip(processes, whats, strict=True):
                if hold is None:
                    process.join(120)
                    assert process.exitcode == 0
                else:
                    _wait_for_lines(process, Path(what.trace), hold)
        finally:
            for process in processes:
                process.kill()
                process.join()
        traces = [[*map(json.loads, Path(w.trace).read_text().splitlines())] for w in whats]
        assert len({json.dumps([step["state"] for step in trace]) for trace in traces}) == 1
        return [
            {"state": steps[0]["state"], "rows": [row for step in steps for row in step["rows"]]}
            for steps in zip(*traces, strict=True)
        ]


def _wait_for_lines(process: multiprocessing.process.BaseProcess, path: Path, count: int) -> None:
    until = time.monotonic() + 120
    while not path.exists() or path.read_bytes().count(b"\n") < count:
        assert process.is_alive(), "it ended before it was killed"
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.fixture(scope="module", autouse=True)
def _fork_server() -> None:
    """What takes seconds to import is imported once. The server does not know this folder."""
    multiprocessing.get_context("forkserver").set_forkserver_preload(
        ["datasets", "jsonargparse", "clipkit.training.loop", "clipkit.data.tokenize"]
    )


@pytest.fixture
def places() -> Iterator[list[Place]]:
    made: list[Place] = []
    yield made
    for place in made:
        place.server.close()


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    ("number", "write"), list(enumerate(KINDS)), ids=[kind.__name__[1:] for kind in KINDS]
)
def test_a_killed_run_goes_on_elsewhere_with_the_same_ids_and_pixels(
    number: int,
    write: Callable[[Path], _Source],
    tmp_path: Path,
    tokenizer: Path,
    places: list[Place],
) -> None:
    here = tmp_path / "here"
    (here / "data").mkdir(parents=True)
    data = write(here / "data")
    elsewhere = tmp_path / "another" / "place"
    shutil.copytree(here / "data", elsewhere / "data")
    places += [Place(here, data, tokenizer), Place(elsewhere, data, tokenizer)]

    whole = places[0].read(0, 1)
    assert [step["state"]["step"] for step in whole] == list(range(STEPS))
    assert all(len(set(step["rows"])) == 12 for step in whole[:3])
    # No two steps are alike: captions, crops and flips are drawn anew in every epoch.
    assert len({row for step in whole for row in step["rows"]}) > 100
    for first, second in _cells(number):
        killed = places[0].read(*first, hold=HOLD)
        assert killed == whole[:HOLD]
        state = killed[HOLD - 2]["state"]  # the last step but one was saved
        assert len(json.dumps(state)) < 1024
        resumed = places[1].read(*second, start=state["step"] + 1)
        assert resumed == whole[HOLD - 1 :], (first, second)
        shutil.rmtree(elsewhere / "cache", ignore_errors=True)


def test_the_short_form_takes_every_cell() -> None:
    taken = {cell for number in range(len(KINDS)) for cell in _cells(number)}
    assert taken == set(CELLS)
