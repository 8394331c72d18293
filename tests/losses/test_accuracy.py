"""in_batch_accuracy against plain NumPy: equal captions, equal images, ties, skipped rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from clipkit.losses import blocks, in_batch_accuracy


def _unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def _slow(images: np.ndarray, texts: np.ndarray, groups: np.ndarray) -> list[float]:
    right = (groups[:, None] == groups[None]).any(-1)
    shares = []
    for scores in (images @ texts.T, texts @ images.T):
        hits = [
            scores[q][right[q]].max() > scores[q][~right[q]].max() + 1e-6
            for q in range(len(scores))
            if not right[q].all()
        ]
        shares.append(float(np.mean(hits)))
    return shares


@pytest.mark.parametrize("block", [1024, 7])
def test_equal_captions_and_equal_images_of_a_batch_are_right_answers_as_in_numpy(
    block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "_CPU_BLOCK", (block, block))
    rng = np.random.default_rng(0)
    images = _unit(rng.normal(size=(40, 8)))
    texts = _unit(images + 0.3 * rng.normal(size=(40, 8)))
    groups = np.stack([rng.integers(0, 25, 40), rng.integers(0, 30, 40)], axis=1)
    # Equal captions have equal vectors, so that either may be found first.
    texts = texts[[np.flatnonzero(groups[:, 0] == group)[0] for group in groups[:, 0]]]
    valid = rng.random(40) < 0.8
    tensors = map(torch.from_numpy, (images, texts, valid))
    found = in_batch_accuracy(*tensors, groups=torch.from_numpy(groups)).tolist()
    expected = _slow(images[valid], texts[valid], groups[valid])
    assert found == pytest.approx(expected)
    without = in_batch_accuracy(torch.from_numpy(images), torch.from_numpy(texts)).tolist()
    assert without[0] < expected[0]
    assert without == pytest.approx(_slow(images, texts, np.tile(np.arange(40), (2, 1)).T))


def test_one_vector_for_everything_is_never_right() -> None:
    one = torch.nn.functional.normalize(torch.ones(16, 513), dim=1)
    assert in_batch_accuracy(one, one).tolist() == [0, 0]


def test_a_batch_of_one_caption_has_no_accuracy() -> None:
    images = torch.eye(4)
    groups = torch.tensor([[7, 0], [7, 1], [7, 2], [7, 3]])
    assert in_batch_accuracy(images, images[:1].expand(4, 4), groups=groups).isnan().all()
