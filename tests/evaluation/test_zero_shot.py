"""Zero-shot classification: probabilities, prompts, what is refused, what is shown."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_model import noise_image

import clipkit
from clipkit.encoder import Encoder
from clipkit.errors import ConfigError
from clipkit.evaluation.prompts import TEMPLATES
from clipkit.evaluation.zero_shot import ZeroShotClassifier


def test_probabilities_are_the_softmax_of_scaled_cosines(tiny_encoder: Encoder) -> None:
    images, labels = [noise_image(i) for i in range(5)], ["red", "blue", "一只猫"]
    result = ZeroShotClassifier(tiny_encoder, labels)(images)
    cosines = tiny_encoder.encode_image(images) @ tiny_encoder.encode_text(labels).T
    logits = np.exp(cosines.astype(np.float64) / 0.07)
    expected = logits / logits.sum(axis=1, keepdims=True)
    assert result.labels == labels
    np.testing.assert_allclose(result.scores, expected, atol=1e-5)
    assert result.scores.shape == (5, 3)


def test_templates_and_several_names_are_averaged(tiny_encoder: Encoder) -> None:
    classifier = ZeroShotClassifier(
        tiny_encoder, {"pet": ["cat", "dog"], "home": ["house"]}, ["a {}", "the {}"]
    )
    embeds = tiny_encoder.encode_text(["a cat", "the cat", "a dog", "the dog"])
    mean = embeds.mean(axis=0)
    np.testing.assert_allclose(classifier.class_embeds[0], mean / np.linalg.norm(mean), atol=1e-6)
    assert classifier.labels == ["pet", "home"]


def test_classes_are_embedded_once_until_the_weights_change(tiny_folder: Path) -> None:
    encoder = clipkit.load(tiny_folder, device="cpu")
    asked: list[str] = []
    whole = encoder.encode_text
    encoder.encode_text = lambda texts: asked.extend(texts) or whole(texts)  # type: ignore[method-assign, func-returns-value]
    first = ZeroShotClassifier(encoder, ["cat", "dog"], "a {}")
    again = ZeroShotClassifier(encoder, ["dog", "cat", "house"], "a {}")
    assert asked == ["a cat", "a dog", "a house"]
    np.testing.assert_array_equal(again.class_embeds[:2], first.class_embeds[::-1])
    with torch.no_grad():
        encoder.model.backbone.text_projection.weight[0] *= 3
    changed = ZeroShotClassifier(encoder, ["cat", "dog"], "a {}").class_embeds
    np.testing.assert_allclose(changed, whole(["a cat", "a dog"]), atol=1e-6)
    assert np.abs(changed - first.class_embeds).max() > 1e-3


def test_below_a_threshold_an_image_is_other(tiny_encoder: Encoder) -> None:
    images, labels = [noise_image(i) for i in range(12)], ["red", "blue", "cat"]
    plain = ZeroShotClassifier(tiny_encoder, labels)(images)
    best = plain.scores.max(axis=1)
    threshold = float(np.median(best))
    result = ZeroShotClassifier(tiny_encoder, labels, other=threshold)(images)
    np.testing.assert_array_equal(result.scores, plain.scores)
    for each, before in zip(result, plain, strict=True):
        assert each.label == ("other" if before.score < threshold else before.label)
        assert each.top(2) == before.top(2)
    unsure = int((best < threshold).sum())
    assert 0 < unsure < 12
    assert repr(result).count("other") == unsure
    assert result._repr_html_().count("<b>other</b>") == unsure


@pytest.mark.parametrize(
    ("labels", "other", "message"),
    [
        (["cat", "dog"], 0.5, "the likeliest has 0.5 or more, so give a number above 0.5"),
        (["cat", "dog"], 1.5, "up to 1"),
        (["cat", "dog"], float("nan"), "up to 1"),
        (["cat"], 1.0, "one label alone always has the probability 1"),
        (["cat", "other"], 0.7, "'other' is one of them"),
    ],
)
def test_a_threshold_that_cannot_work_is_refused(
    tiny_encoder: Encoder, labels: list[str], other: float, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        ZeroShotClassifier(tiny_encoder, labels, other=other)


def test_one_image_gives_one_row_and_top_sorts_it(tiny_encoder: Encoder) -> None:
    result = ZeroShotClassifier(tiny_encoder, ["red", "blue", "cat"], "a {}")(noise_image(0))
    assert result.scores.shape == (1, 3)
    ((best, second),) = result.top(2)
    assert best[1] >= second[1]
    assert best[0] == result.labels[int(result.scores[0].argmax())]
    assert len(result.top(9)[0]) == 3
    for k in (0, -1, 2.5, "a"):
        with pytest.raises(ConfigError, match=r"k: .*; give a whole number, 1 or more"):
            result.top(k)  # type: ignore[arg-type]
    assert "image 0" in repr(result)
    assert best[0] in repr(result)


def test_a_long_label_is_cut_and_told(tiny_encoder: Encoder) -> None:
    words = r"1 of 2 labels are longer than the model's 16 tokens and were cut, 'very very .*…'"
    for _ in range(2):  # also where it is in the cache
        with pytest.warns(UserWarning, match=words):
            classifier = ZeroShotClassifier(tiny_encoder, ["cat", "very " * 500 + "large dog"])
    assert len(classifier(noise_image(0)).labels) == 2
    with pytest.raises(ConfigError, match=r"model: a str; give what clipkit\.load returns"):
        ZeroShotClassifier("runs/emoji", ["cat", "dog"])  # type: ignore[arg-type]


def test_paths_name_the_rows_of_the_table(tiny_encoder: Encoder, tmp_path) -> None:
    paths = []
    for i in range(30):
        paths.append(tmp_path / f"picture-{i}.png")
        noise_image(i).save(paths[-1])
    result = ZeroShotClassifier(tiny_encoder, ["red", "blue"])(paths)
    lines = repr(result).splitlines()
    assert lines[0].startswith(str(paths[0]))
    assert lines[-1] == "… and 10 more images"
    empty = ZeroShotClassifier(tiny_encoder, ["red", "blue"])([])
    assert len(empty) == 0
    assert "no images" in repr(empty)


@pytest.mark.filterwarnings("ignore:.*were cut")
@pytest.mark.parametrize("name", TEMPLATES)
def test_named_sets_have_a_place_for_the_label(tiny_encoder: Encoder, name: str) -> None:
    assert all(template.count("{}") == 1 for template in TEMPLATES[name])
    assert ZeroShotClassifier(tiny_encoder, ["a", "b"], name).class_embeds.shape == (2, 24)


@pytest.mark.parametrize(
    ("labels", "templates", "message"),
    [
        ([], None, "there are none"),
        (["cat", "cat"], None, "'cat' stands there twice"),
        (["cat", " "], None, "' ' has no name"),
        ("cat,dog", None, "give a list"),
        ({"cat", "dog"}, None, "a set; give a list of texts"),
        (None, None, "a NoneType; give a list of texts"),
        ((label for label in "ab"), None, "a generator; give a list of texts"),
        ([["cat"], "dog"], None, "is a list; give a text"),
        ({"cat": 3}, None, "names as a int; give a list"),
        ({"cat": []}, None, "'cat' has no name"),
        (["cat"], "photos", "did you mean photo?"),
        (["cat"], "a picture", r"no \{\} where the label goes"),
        (["cat"], ["a {}", "the"], r"'the' has no \{\}"),
        (["cat"], [], "the list is empty"),
    ],
)
def test_labels_and_templates_that_cannot_work_are_refused(
    tiny_encoder: Encoder, labels: object, templates: object, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        ZeroShotClassifier(tiny_encoder, labels, templates)  # type: ignore[arg-type]
