"""Recall and rank against a brute-force count, ties and several right answers included."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from clipkit.errors import ClipkitError
from clipkit.evaluation import metrics as module
from clipkit.evaluation.metrics import retrieval_metrics, retrieval_rankings


def _unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def _slow_ranks(queries: np.ndarray, gallery: np.ndarray, right: list[set[int]]) -> list[int]:
    """For each query: 1 + the wrong rows that score at least as high as its best right one."""
    ranks = []
    for query, rows in zip(queries.astype(np.float64), right, strict=True):
        scores = gallery.astype(np.float64) @ query
        best = max((scores[row] for row in rows), default=None)
        wrong = [s for row, s in enumerate(scores) if row not in rows]
        ranks.append(0 if best is None else 1 + sum(s >= best - 1e-6 for s in wrong))
    return ranks


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("blocks", [(1024, 16384), (3, 7)])
def test_ranks_equal_brute_force_with_ties_and_several_right_answers(
    seed: int, blocks: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_QUERIES", blocks[0])
    monkeypatch.setattr(module, "_GALLERY", blocks[1])
    rng = np.random.default_rng(seed)
    # Directions from a handful, so that many scores are exactly equal.
    directions = _unit(rng.normal(size=(6, 8)))
    images = directions[rng.integers(0, 6, 23)]
    texts = directions[rng.integers(0, 6, 31)]
    # Some texts have several images, some images several texts, some of both have none.
    pairs = np.stack([rng.integers(0, 20, 40), rng.integers(0, 28, 40)], axis=1)
    of_text = [set(pairs[pairs[:, 1] == t, 0].tolist()) for t in range(31)]
    of_image = [set(pairs[pairs[:, 0] == i, 1].tolist()) for i in range(23)]

    text_ranks, image_ranks = (each.ranks for each in retrieval_rankings(images, texts, pairs))

    assert text_ranks.tolist() == _slow_ranks(texts, images, of_text)
    assert image_ranks.tolist() == _slow_ranks(images, texts, of_image)
    metrics = retrieval_metrics(images, texts, pairs, ks=(1, 3))
    asked = np.array([r for r in _slow_ranks(texts, images, of_text) if r])
    assert metrics["text_to_image_R@1"] == pytest.approx((asked == 1).mean())
    assert metrics["text_to_image_R@3"] == pytest.approx((asked <= 3).mean())
    assert metrics["text_to_image_median_rank"] == np.median(asked)
    assert (metrics["num_images"], metrics["num_texts"]) == (23, 31)


@pytest.mark.parametrize("blocks", [(1024, 16384), (3, 7)])
def test_average_precision_equals_brute_force_with_ties_and_several_right_answers(
    blocks: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_QUERIES", blocks[0])
    monkeypatch.setattr(module, "_GALLERY", blocks[1])
    rng = np.random.default_rng(1)
    directions = _unit(rng.normal(size=(6, 8)))
    images, texts = directions[rng.integers(0, 6, 23)], directions[rng.integers(0, 6, 31)]
    pairs = np.stack([rng.integers(0, 20, 60), rng.integers(0, 28, 60)], axis=1)

    def slow(queries: np.ndarray, gallery: np.ndarray, column: int) -> float:
        found = []
        for q, scores in enumerate(queries.astype(np.float64) @ gallery.T.astype(np.float64)):
            right = set(pairs[pairs[:, column] == q, 1 - column].tolist())
            # Of equal scores, wrong answers are listed before right ones.
            order = sorted(range(len(gallery)), key=lambda g: (-round(scores[g], 5), g in right))
            hits = np.array([g in right for g in order])
            if right:
                found.append((np.cumsum(hits) / np.arange(1, len(hits) + 1))[hits].mean())
        return float(np.mean(found))

    metrics = retrieval_metrics(images, texts, pairs)
    assert metrics["text_to_image_mAP"] == pytest.approx(slow(texts, images, 1))
    assert metrics["image_to_text_mAP"] == pytest.approx(slow(images, texts, 0))


@pytest.mark.long
def test_100_thousand_images_and_500_thousand_texts_take_less_than_2_gb_beside_them(
    root: Path,
) -> None:
    code = (
        "import resource, numpy as np\n"
        "from clipkit.evaluation.metrics import retrieval_metrics\n"
        "rng = np.random.default_rng(0)\n"
        "def unit(n):\n"
        "    x = rng.standard_normal((n, 512), dtype=np.float32)\n"
        "    x /= np.linalg.norm(x, axis=1, keepdims=True)\n"
        "    return x\n"
        "images, texts = unit(100_000), unit(500_000)\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "m = retrieval_metrics(images, texts, np.arange(500_000) // 5)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, m['num_texts'])\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    kilobytes, texts = result.stdout.split()
    assert texts == "500000"
    assert int(kilobytes) < 2e6


def test_the_image_of_each_text_is_enough_where_an_image_has_several_captions() -> None:
    images = np.eye(3, dtype=np.float32)
    texts = _unit(np.array([[1, 0, 0], [0.9, 1, 0], [0, 1, 0.1], [0, 0, 1]], dtype=np.float64))
    metrics = retrieval_metrics(images, texts, np.array([0, 0, 1, 2]), ks=(1, 2))
    assert metrics["text_to_image_R@1"] == 0.75  # the second text is nearer to image 1
    assert metrics["text_to_image_R@2"] == 1
    assert metrics["image_to_text_R@1"] == 1  # image 0 finds the first of its texts
    assert metrics["image_to_text_median_rank"] == 1


def test_a_recall_that_cannot_be_wrong_is_left_out() -> None:
    embeds = _unit(np.random.default_rng(0).normal(size=(6, 8)))
    metrics = retrieval_metrics(embeds[:4], embeds[:4])
    assert metrics["text_to_image_R@1"] == 1
    assert metrics["text_to_image_chance"] == 0.25
    assert not {"text_to_image_R@5", "image_to_text_R@5", "image_to_text_R@10"} & metrics.keys()
    # Image 0 has five of six texts: its first wrong answer is the last one.
    pairs = np.array([[0, 0], [0, 1], [0, 2], [0, 3], [0, 4], [1, 5]])
    metrics = retrieval_metrics(embeds[:2], embeds, pairs)
    assert "image_to_text_R@5" in metrics, "image 1 has five wrong ones"
    assert metrics["image_to_text_chance"] == pytest.approx((5 / 6 + 1 / 6) / 2)
    # One text for all images, and one image for all texts, measure nothing.
    for shape in ((1, 6), (6, 1)):
        pairs = np.stack(np.meshgrid(*map(np.arange, shape)), axis=-1).reshape(-1, 2)
        metrics = retrieval_metrics(embeds[: shape[0]], embeds[: shape[1]], pairs)
        assert metrics == {"num_images": shape[0], "num_texts": shape[1]}


def test_a_perfect_model_scores_one_and_the_reverse_of_it_nothing() -> None:
    embeds = _unit(np.random.default_rng(0).normal(size=(50, 16)))
    assert retrieval_metrics(embeds, embeds)["text_to_image_R@1"] == 1
    worst = retrieval_metrics(embeds, -embeds)
    assert worst["image_to_text_R@10"] == 0
    assert worst["image_to_text_median_rank"] == 50


@pytest.mark.parametrize("dim", [3, 64, 513])
def test_a_collapsed_model_scores_nothing_and_not_one(dim: int) -> None:
    one = _unit(np.random.default_rng(1).normal(size=(1, dim)))
    metrics = retrieval_metrics(np.repeat(one, 100, axis=0), np.repeat(one, 100, axis=0))
    assert metrics["text_to_image_R@10"] == 0
    assert metrics["text_to_image_median_rank"] == 100


def test_two_captions_with_one_vector_are_both_missed() -> None:
    embeds = _unit(np.random.default_rng(2).normal(size=(10, 16)))
    texts = embeds.copy()
    texts[1] = texts[0]
    metrics = retrieval_metrics(embeds, texts)
    assert metrics["image_to_text_R@1"] == pytest.approx(0.8)
    assert metrics["text_to_image_R@1"] == pytest.approx(0.9)


def test_nan_counts_against_the_model() -> None:
    embeds = _unit(np.random.default_rng(3).normal(size=(10, 16)))
    broken = np.full_like(embeds, np.nan)
    assert retrieval_metrics(embeds, broken)["text_to_image_R@5"] == 0
    assert retrieval_metrics(broken, embeds)["text_to_image_R@5"] == 0


def test_more_images_can_only_lower_recall() -> None:
    rng = np.random.default_rng(4)
    images = _unit(rng.normal(size=(200, 8)))
    texts = _unit(images[:40] + 0.4 * rng.normal(size=(40, 8)))
    pairs = np.stack([np.arange(40), np.arange(40)], axis=1)
    small = retrieval_metrics(images[:40], texts, pairs)
    large = retrieval_metrics(images, texts, pairs)
    assert 0.1 < large["text_to_image_R@1"] < small["text_to_image_R@1"]
    assert large["image_to_text_R@1"] == small["image_to_text_R@1"]


@pytest.mark.parametrize(
    ("shapes", "matches", "message"),
    [
        (((3, 4), (3, 5)), None, "D differs"),
        (((3, 4), (2, 4)), None, "numbers of rows differ"),
        (((3, 4), (2, 4)), [0, 3], "rows that are not there"),
        (((3, 4), (2, 4)), [0, -1], "rows that are not there"),
        (((3, 4), (2, 4)), [0.0, 1.0], "whole numbers"),
        (((3, 4), (2, 4)), [[0, 1, 2]], "whole numbers"),
        (((3, 4), (0, 4)), [], "nothing can be measured|whole numbers"),
        (((3,), (3, 4)), None, r"must be \(rows, D\)"),
    ],
)
def test_what_does_not_fit_together_is_refused(
    shapes: tuple[tuple[int, ...], tuple[int, ...]], matches: list[object] | None, message: str
) -> None:
    images, texts = (np.ones(shape, dtype=np.float32) for shape in shapes)
    with pytest.raises(ClipkitError, match=message):
        retrieval_metrics(images, texts, None if matches is None else np.array(matches))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_ranks_on_a_gpu_equal_those_on_the_cpu() -> None:
    rng = np.random.default_rng(5)
    images = _unit(rng.normal(size=(3000, 64)))
    texts = _unit(images + 0.3 * rng.normal(size=(3000, 64)))
    for ours, theirs in zip(
        retrieval_rankings(images, texts, device="cuda"),
        retrieval_rankings(images, texts),
        strict=True,
    ):
        np.testing.assert_array_equal(ours.ranks, theirs.ranks)
