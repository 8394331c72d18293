"""Zero-shot classification of whatever is called images, and how the result shows itself."""

from __future__ import annotations

import http.server
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from tiny_model import noise_image, png_bytes

from clipkit.encoder import Encoder
from clipkit.errors import ConfigError, DataError
from clipkit.evaluation.zero_shot import ZeroShotClassifier


@pytest.fixture
def classifier(tiny_encoder: Encoder) -> ZeroShotClassifier:
    return ZeroShotClassifier(tiny_encoder, ["red", "blue", "cat"])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    (folder / "more").mkdir(parents=True)
    for i, name in enumerate(["a.png", "b.png", "more/c.png"]):
        noise_image(i).save(folder / name)
    (folder / "notes.txt").write_text("no image")
    return folder


def test_every_kind_of_images_gives_the_same_scores(
    classifier: ZeroShotClassifier, folder: Path
) -> None:
    paths = [folder / "a.png", folder / "b.png", folder / "more/c.png"]
    pictures = [Image.open(path) for path in paths]
    arrays = np.stack([np.asarray(picture) for picture in pictures])
    table = datasets.Dataset.from_dict({"image": [str(path) for path in paths], "n": [0, 1, 2]})
    table = table.cast_column("image", datasets.Image())
    expected = classifier(pictures).scores
    assert expected.shape == (3, 3)
    for images in (
        paths,
        map(str, paths),
        (picture for picture in pictures),
        folder,
        str(folder),
        [path.read_bytes() for path in paths],
        arrays,
        list(arrays),
        torch.from_numpy(arrays).permute(0, 3, 1, 2),
        table["image"],
        table.to_iterable_dataset()["image"],
    ):
        np.testing.assert_array_equal(classifier(images).scores, expected)
    assert [each.name for each in classifier(folder)] == list(map(str, paths))
    with pytest.raises(ConfigError, match=r"a Dataset; give one column of it, .*\['image'\]"):
        classifier(table)


def test_an_image_that_cannot_be_read_keeps_its_row_and_takes_no_other_with_it(
    classifier: ZeroShotClassifier, folder: Path
) -> None:
    good = noise_image(1)
    bad = [b"<html>", str(folder / "gone.png"), None, np.zeros((4, 4)), "https://host/a.png"]
    images = [good, *bad, good]
    with pytest.warns(UserWarning, match=r"5 of 7 images cannot be read; the first is row 1, "):
        result = classifier(images, batch_size=3)
    whole = classifier(good).scores[0]
    np.testing.assert_allclose(result.scores[[0, 6]], [whole, whole], atol=1e-6)
    assert np.isnan(result.scores[1:6]).all()
    assert result.faults[0] is None
    for row, words in enumerate(
        ["images[1]: the image cannot be decoded (HTML, not an image)", "gone.png: no such file",
         "images[3]: a NoneType", "images[4]: a float64 array", "urls=True"], 1,
    ):  # fmt: skip
        assert words in str(result[row].fault)
        assert result[row].label is None
        assert result.top(2)[row] == []
    assert "cannot be read: " in result[1:3]._repr_html_()
    assert result.to_pandas()["label"].isna().sum() == 5
    for nothing in (bad[0], [bad[0]] * 3):
        with pytest.raises(DataError, match="HTML"):
            classifier(nothing)
    (folder / "none").mkdir()
    with pytest.raises(DataError, match="no images are in this folder"):
        classifier(folder / "none")


def test_a_column_with_a_broken_file_loses_only_that(
    classifier: ZeroShotClassifier, tmp_path: Path
) -> None:
    data = [png_bytes(noise_image(i)) for i in range(4)]
    data[2] = data[2][:100]
    cells = [{"bytes": each, "path": None} for each in data]
    table = datasets.Dataset.from_dict({"picture": cells}).cast_column("picture", datasets.Image())
    with pytest.warns(UserWarning, match=r"1 of 4 images cannot be read; the first is row 2"):
        result = classifier(table["picture"])
    assert [each.fault is None for each in result] == [True, True, False, True]


def test_urls_are_fetched_where_that_is_asked_for(
    classifier: ZeroShotClassifier, folder: Path
) -> None:
    def handler(*arguments: object) -> http.server.SimpleHTTPRequestHandler:
        return http.server.SimpleHTTPRequestHandler(*arguments, directory=str(folder))  # type: ignore[arg-type]

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        result = classifier(f"{address}/a.png", urls=True)
        with pytest.raises(DataError, match=r"gone.png: cannot be fetched \(not there\)"):
            classifier(f"{address}/gone.png", urls=True)
        server.shutdown()
    np.testing.assert_array_equal(result.scores, classifier(folder / "a.png").scores)


def test_a_stream_of_images_is_not_held(classifier: ZeroShotClassifier) -> None:
    alive = most = 0

    def gone() -> None:
        nonlocal alive
        alive -= 1

    def images() -> Iterator[Image.Image]:
        nonlocal alive, most
        for i in range(300):
            image = noise_image(i)
            weakref.finalize(image, gone)
            alive += 1
            most = max(most, alive)
            yield image
            del image

    result = classifier(images())
    assert len(result) == 300
    assert most <= 4
    assert sum(small is not None for small in result.thumbnails) == 200  # as is documented
    parts = list(classifier.stream(images(), batch_size=128))
    assert [len(part) for part in parts] == [128, 128, 44]
    np.testing.assert_allclose(
        np.concatenate([part.scores for part in parts]), result.scores, atol=1e-6
    )


def test_a_result_is_a_sequence_and_a_frame(classifier: ZeroShotClassifier) -> None:
    result = classifier([noise_image(i) for i in range(4)])
    frame = result.to_pandas()
    assert list(frame.columns[:4]) == ["image", "label", "score", "fault"]
    np.testing.assert_array_equal(frame[["p(red)", "p(blue)", "p(cat)"]].to_numpy(), result.scores)
    for row, each in enumerate(result):
        assert [(each.label, each.score)] == each.top(1) == result.top(1)[row]
        assert (frame["label"][row], frame["image"][row]) == (each.label, f"image {row}")
    assert [each.name for each in result[1:3]] == ["image 1", "image 2"]
    assert len(list(result)) == 4
    with pytest.raises(IndexError):
        result[4]


@pytest.mark.filterwarnings("ignore:.*were cut")
def test_a_notebook_shows_pictures_bars_and_text_as_text(
    tiny_encoder: Encoder, tmp_path: Path
) -> None:
    name = tmp_path / "<img src=x onerror=alert(1)>.png"
    noise_image(0).save(name)
    labels = ["<script>alert(1)</script>", "a & b"]
    page = ZeroShotClassifier(tiny_encoder, labels)([name])._repr_html_()
    assert page.count("<img") == 1
    assert 'src="data:image/webp;base64,' in page
    assert "<script" not in page
    assert "a &amp; b" in page
    many = ZeroShotClassifier(tiny_encoder, labels)([noise_image(i) for i in range(60)])
    assert many._repr_html_().count("<img") == 50
    assert "… and 10 more images" in many._repr_html_()
    assert "0 images, 2 labels" in ZeroShotClassifier(tiny_encoder, labels)([])._repr_html_()
