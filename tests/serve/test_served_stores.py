"""Several stores behind one server, one hit an image, and updates that it takes over."""

from __future__ import annotations

import urllib.parse
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageChops
from serve_process import serving
from test_server import Client, quoted
from tiny_model import noise_image, png_bytes, save_tiny_model, tiny_folder, write_shard  # noqa: F401

import clipkit
from clipkit.encoder import Encoder
from clipkit.errors import CheckpointError
from clipkit.retrieval.codes import build_codes
from clipkit.retrieval.embed import embed
from clipkit.serve.server import Server

Samples = list[tuple[int, str]]


@pytest.fixture(scope="module")
def encoder(tiny_folder: Path) -> Encoder:  # noqa: F811
    return clipkit.load(tiny_folder, device="cpu")


def store_of(encoder: Encoder, folder: Path, samples: Samples, **options: Any) -> Path:
    """A store of images, by seed, with captions."""
    pairs = [(png_bytes(noise_image(seed)), caption) for seed, caption in samples]
    source = write_shard(folder.with_suffix(".tar"), pairs)
    options = {"precision": "fp32", "batch_size": 4, "part_rows": 4, **options}
    embed(encoder, str(source), folder, progress=False, **options)
    return folder


def picture(client: Client, hit: dict[str, Any]) -> Image.Image:
    status, _, body = client.ask("/" + hit["picture"])
    assert status == 200, body
    return Image.open(BytesIO(body)).convert("RGB")


def is_seed(image: Image.Image, seed: int) -> bool:
    """Whether a picture is that of a seed, but for what WebP loses."""
    buffer = BytesIO()
    noise_image(seed).save(buffer, "WEBP", quality=82)
    other = Image.open(buffer).convert("RGB")
    return image.size == other.size and not ImageChops.difference(image, other).getbbox()


def test_several_stores_are_one_with_pictures_rows_and_filters_of_all(
    encoder: Encoder, tmp_path: Path
) -> None:
    one = store_of(encoder, tmp_path / "one", [(i, f"red number {i}") for i in range(5)])
    # Image 3 is in both, and here with two captions; words of its own in a field.
    more = [(10, "blue cat"), (3, "blue number 3"), (3, "green number 3"), (11, "green dog")]
    two = store_of(encoder, tmp_path / "two", more)
    with serving(one, str(two)) as (url, _):
        client = Client(url)
        facts = client.json("/api/store")[1]
        assert facts["rows"] == 9
        assert [each["rows"] for each in facts["stores"]] == [5, 4]
        found = client.json(quoted(text="red number 3", k=9))[1]
        seeds = {0: 0, 1: 1, 2: 2, 3: 3, 4: 4, 5: 10, 6: 3, 7: 3, 8: 11}
        assert sorted(seeds[hit["row"]] for hit in found["hits"]) == [0, 1, 2, 3, 4, 10, 11]
        for hit in found["hits"]:
            assert is_seed(picture(client, hit), seeds[hit["row"]])
            assert hit["store"].endswith("one" if hit["row"] < 5 else "two")
        rows = client.json(quoted(text="red number 3", k=9, rows="true"))[1]["hits"]
        assert sorted(hit["row"] for hit in rows) == list(range(9))
        only_two = client.json(quoted(text="red", where="caption~blue"))[1]["hits"]
        assert sorted(hit["row"] for hit in only_two) == [5, 6]
        like = client.json(quoted(like=6, k=9))[1]["hits"]
        assert 3 not in {seeds[hit["row"]] for hit in like}
        assert client.json(quoted(like=9))[0] == 400
        assert client.json(quoted(text="red", rows="yes"))[0] == 400


def test_a_finished_update_is_taken_over_and_old_rows_are_refused(
    encoder: Encoder, tmp_path: Path
) -> None:
    before = [(i, f"red number {i}") for i in range(6)]
    store = store_of(encoder, tmp_path / "store", before)
    build_codes(clipkit.EmbeddingStore(store), "image", progress=False)
    with serving(store) as (url, _):
        client = Client(url)
        old = client.json(quoted(text="red number 3", k=9))[1]
        assert len(old["hits"]) == 6
        after = [(20, "blue cat"), *before[:2], *before[3:]]
        store_of(encoder, store, after, update=True)
        status, stale = client.json(quoted(like=old["hits"][0]["row"], v=old["store"]))
        assert (status, stale["error"]) == (409, "the store has been updated since; search again")
        new = client.json(quoted(text="red number 3", k=9))[1]
        assert new["store"] != old["store"]
        assert client.json("/api/store")[1]["id"] == new["store"]
        assert {hit["caption"] for hit in new["hits"]} == {caption for _, caption in after}
        seeds = [seed for seed, _ in after]
        for hit in new["hits"]:
            assert is_seed(picture(client, hit), seeds[hit["row"]])
        old_picture = urllib.parse.urlsplit("/" + old["hits"][0]["picture"])
        assert client.ask(old_picture.geturl())[0] == 404
        # What cannot be opened is not taken over: the server goes on with what it has.
        manifest = store / "manifest.json"
        good = manifest.read_text()
        manifest.write_text("{")
        assert client.json(quoted(text="red number 3", k=9))[1]["hits"] == new["hits"]
        manifest.write_text(good)
        assert client.json(quoted(text="red number 3", k=9))[1]["hits"] == new["hits"]


def test_stores_of_two_models_are_refused_by_name(encoder: Encoder, tmp_path: Path) -> None:
    one = store_of(encoder, tmp_path / "one", [(0, "red")])
    other = clipkit.load(save_tiny_model(tmp_path / "other", seed=1), device="cpu")
    two = store_of(other, tmp_path / "two", [(1, "blue")])
    with pytest.raises(CheckpointError, match=r"two: made with the model .*other.*one is of"):
        Server([one, two], port=0)
