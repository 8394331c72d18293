"""A classifier that learns from a few labelled images, and its temperature."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from tiny_model import noise_image

from clipkit.encoder import Encoder
from clipkit.errors import ConfigError, DataError
from clipkit.evaluation.few_shot import best_scale
from clipkit.evaluation.zero_shot import ZeroShotClassifier

LABELS = ["red", "green", "blue"]


def tinted(label: int, seed: int) -> Image.Image:
    """Noise in which one colour is a little stronger."""
    pixels = np.asarray(noise_image(seed)).astype(np.int64)
    pixels[:, :, label] += 25
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def examples() -> tuple[list[Image.Image], np.ndarray]:
    targets = np.arange(45) % 3
    return [tinted(int(c), i) for i, c in enumerate(targets)], targets


def words(targets: np.ndarray) -> list[str]:
    return [LABELS[c] for c in targets]


def log_loss(scores: np.ndarray, targets: np.ndarray) -> float:
    return float(-np.log(scores[np.arange(len(targets)), targets].astype(np.float64)).mean())


def test_the_nearest_mean_is_that_of_brute_force(tiny_encoder: Encoder, examples) -> None:
    images, targets = examples
    classifier = ZeroShotClassifier(tiny_encoder, LABELS)
    fitted = classifier.fit(images, words(targets), text_weight=0.0)
    embeds = tiny_encoder.encode_image(images)
    for c in range(3):
        mean = embeds[targets == c].mean(axis=0)
        np.testing.assert_allclose(fitted.weights[c], mean / np.linalg.norm(mean), atol=1e-6)
    mixed = classifier.fit(images, words(targets), text_weight=0.25).weights
    means = np.stack([embeds[targets == c].mean(axis=0) for c in range(3)])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    expected = 0.25 * classifier.class_embeds + 0.75 * means
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(mixed, expected, atol=1e-6)
    only_texts = classifier.fit(images, words(targets), text_weight=1.0)
    np.testing.assert_allclose(
        only_texts(images[:4]).scores,
        ZeroShotClassifier(tiny_encoder, LABELS)(images[:4]).scores,
        atol=1e-5,
    )


@pytest.mark.parametrize("l2", [0.01, 1.0])
def test_the_probe_is_that_of_scikit_learn(tiny_encoder: Encoder, examples, l2: float) -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    images, targets = examples
    classifier = ZeroShotClassifier(tiny_encoder, LABELS)
    classifier.fit(images, words(targets), method="probe", text_weight=0.0, l2=l2)
    embeds = tiny_encoder.encode_image(images).astype(np.float64)
    reference = linear_model.LogisticRegression(C=1 / l2, tol=1e-9, max_iter=20_000)
    reference.fit(embeds, targets)
    new = [tinted(i % 3, 100 + i) for i in range(12)]
    expected = reference.predict_proba(tiny_encoder.encode_image(new).astype(np.float64))
    np.testing.assert_allclose(classifier(new).scores, expected, atol=2e-4)


def test_the_probe_goes_from_the_examples_to_the_prompts(tiny_encoder: Encoder, examples) -> None:
    images, targets = examples
    zero_shot = ZeroShotClassifier(tiny_encoder, LABELS)
    plain = zero_shot(images).scores
    fitted = ZeroShotClassifier(tiny_encoder, LABELS)

    def distance(l2: float) -> float:
        fitted.fit(images, words(targets), method="probe", text_weight=1.0, l2=l2)
        fitted.bias[:] = 0  # it is free, whatever l2 is
        return float(np.abs(fitted(images).scores - plain).max())

    near, middle, far = distance(1e6), distance(10), distance(0.001)
    assert near < 1e-3 < middle < far
    fitted.fit(images, words(targets), method="probe", text_weight=1.0, l2=0.001)
    assert (fitted(images).scores.argmax(axis=1) == targets).mean() > 0.9
    assert (plain.argmax(axis=1) == targets).mean() < 0.7  # or there was nothing to learn


def test_calibrating_finds_the_temperature_of_least_log_loss(
    tiny_encoder: Encoder, examples
) -> None:
    images, targets = examples
    classifier = ZeroShotClassifier(tiny_encoder, LABELS)
    classifier.fit(images[:15], words(targets[:15]), text_weight=0.0)
    held, truth = images[15:], targets[15:]
    before = classifier(held)
    classifier.calibrate(held, words(truth))
    after = classifier(held)
    np.testing.assert_array_equal(after.scores.argmax(axis=1), before.scores.argmax(axis=1))
    logits = tiny_encoder.encode_image(held) @ classifier.weights.T
    losses = {}
    for scale in np.geomspace(0.01, 1000, 4000):
        exponentials = np.exp(scale * (logits - logits.max(axis=1, keepdims=True)))
        losses[scale] = log_loss(exponentials / exponentials.sum(axis=1, keepdims=True), truth)
    best = min(losses, key=losses.__getitem__)
    assert classifier.scale == pytest.approx(best, rel=0.005)
    assert log_loss(after.scores, truth) <= min(losses.values()) + 1e-6
    assert log_loss(after.scores, truth) < log_loss(before.scores, truth)


def test_where_no_temperature_is_best_it_stays(tiny_encoder: Encoder) -> None:
    images = [noise_image(i) for i in range(6)]
    classifier = ZeroShotClassifier(tiny_encoder, LABELS)
    result = classifier(images)
    best = [str(each.label) for each in result]
    worst = [LABELS[c] for c in result.scores.argmin(axis=1)]
    for labels, right in ((best, 6), (worst, 0)):
        with pytest.warns(UserWarning, match=f"{right} of 6 images are right, and no temperature"):
            classifier.calibrate(images, labels)
        assert classifier.scale == tiny_encoder.scale
    assert best_scale(np.zeros((3, 2)), np.array([0, 1, 0])) is None


def test_examples_that_cannot_be_read_are_left_out(tiny_encoder: Encoder, examples) -> None:
    images, targets = examples
    classifier = ZeroShotClassifier(tiny_encoder, LABELS)
    with pytest.warns(UserWarning, match="1 of 10 images cannot be read; the first is row 1"):
        classifier.fit([images[0], b"", *images[1:9]], words([0, 1, *targets[1:9]]))
    whole = ZeroShotClassifier(tiny_encoder, LABELS).fit(images[:9], words(targets[:9]))
    np.testing.assert_allclose(classifier.weights, whole.weights, atol=1e-6)


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        (["red", "green", "blu"], {}, r"labels\[2\]: 'blu' is no label .* did you mean 'blue'"),
        (["red", "green", 2], {}, r"labels\[2\]: a int; give the label's text"),
        (["red", "green"], {}, "2 for 3 images; give one each"),
        (["red", "green", "red"], {}, "1 of 3 have no image, 'blue' for one"),
        (LABELS, {"method": "svm"}, "give mean or probe"),
        (LABELS, {"text_weight": 2}, "text_weight: 2; give a number from 0 to 1"),
        (LABELS, {"l2": 0}, "l2: 0; give a number above 0"),
    ],
)
def test_examples_that_cannot_work_are_refused(
    tiny_encoder: Encoder, labels: list, options: dict, message: str
) -> None:
    classifier = ZeroShotClassifier(tiny_encoder, LABELS)
    images = [noise_image(i) for i in range(3)]
    for each in (images, iter(images)):
        with pytest.raises(ConfigError, match=message):
            classifier.fit(each, labels, **options)
    with pytest.raises(ConfigError, match="there are none"):
        classifier.fit([], [])
    with pytest.raises(DataError, match="not one of 3"):
        classifier.calibrate([b""] * 3, LABELS)
