"""evaluate_retrieval: what counts as one image or text, galleries, skips, and several ranks."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from tiny_model import noise_image, noise_shard, png_bytes, write_shard

import clipkit
from clipkit.config.schema import SourceConfig
from clipkit.data import Reader, open_source
from clipkit.encoder import Encoder
from clipkit.errors import DataError
from clipkit.evaluation.embedding import Job
from clipkit.evaluation.metrics import retrieval_metrics
from clipkit.evaluation.retrieval import embed_retrieval_set, evaluate_retrieval


def _open(path: Path, **options: str) -> Reader:
    return open_source(SourceConfig(path=str(path), **options), progress=False)


def test_the_metrics_are_those_of_the_embeddings(tiny_encoder: Encoder, tmp_path: Path) -> None:
    reader = _open(noise_shard(tmp_path / "a.tar", 30))
    images = tiny_encoder.encode_image([noise_image(i) for i in range(30)])
    texts = tiny_encoder.encode_text([reader[i].caption or "" for i in range(30)])
    counts = {"num_captions": 30, "num_shared": 0, "num_indistinct": 0}
    expected = retrieval_metrics(images, texts) | counts | {"num_skipped": 0, "num_truncated": 0}
    for batch_size, workers in ((7, 0), (256, 1)):
        found = evaluate_retrieval(Job(tiny_encoder, batch_size, workers), reader)
        assert found == expected


def test_equal_files_are_one_image_and_equal_captions_one_text(
    tiny_encoder: Encoder, tmp_path: Path
) -> None:
    files = [png_bytes(noise_image(i)) for i in range(3)]
    samples = [(files[0], "red"), (files[0], "blue"), (files[1], "red"), (files[2], "cat")]
    reader = _open(write_shard(tmp_path / "a.tar", [*samples, (files[2], " cat ")]))
    collected = embed_retrieval_set(Job(tiny_encoder), reader)
    assert collected is not None
    assert collected.captions == ["red", "blue", "cat"]
    assert collected.matches.tolist() == [[0, 0], [0, 1], [1, 0], [2, 2], [2, 2]]
    assert collected.places == [(0, 0), (0, 2), (0, 3)]
    metrics = evaluate_retrieval(tiny_encoder, reader)
    assert (metrics["num_images"], metrics["num_texts"]) == (3, 3)


def test_a_gallery_adds_images_and_counts_those_known_once(
    tiny_encoder: Encoder, tmp_path: Path
) -> None:
    reader = _open(noise_shard(tmp_path / "a.tar", 10))
    # Ten images, of which five are known, and no captions.
    files = [(png_bytes(noise_image(i)), None) for i in range(5, 15)]
    gallery = _open(write_shard(tmp_path / "b.tar", files), caption="none")
    alone = evaluate_retrieval(tiny_encoder, reader)
    among = evaluate_retrieval(Job(tiny_encoder), reader, gallery=gallery)
    assert among["num_images"] == 15
    assert among["num_texts"] == 10
    assert among["text_to_image_median_rank"] > alone["text_to_image_median_rank"]
    assert among["image_to_text_R@5"] == alone["image_to_text_R@5"]
    assert evaluate_retrieval(Job(tiny_encoder), reader, gallery=[gallery, reader]) == among


def test_other_fields_can_be_the_captions(tiny_encoder: Encoder, tmp_path: Path) -> None:
    path = noise_shard(tmp_path / "a.tar", 3)
    collected = embed_retrieval_set(
        Job(tiny_encoder), _open(path, caption="json.words", captions="join")
    )
    assert collected is not None
    assert collected.captions[1] == "green, number, 1"


def test_what_cannot_be_used_is_left_out_and_counted(tiny_encoder: Encoder, tmp_path: Path) -> None:
    samples = [(png_bytes(noise_image(i)), f"cat {i}") for i in range(6)]
    samples[1], samples[4] = (b"", "cat 1"), (b"<svg>", "cat 4")
    metrics = evaluate_retrieval(Job(tiny_encoder), _open(write_shard(tmp_path / "a.tar", samples)))
    assert (metrics["num_images"], metrics["num_texts"], metrics["num_skipped"]) == (4, 4, 2)
    samples = [(b"x", "cat")] * 3
    with pytest.raises(DataError, match=r"no pair.*can be used \(the first: .*not an image"):
        evaluate_retrieval(Job(tiny_encoder), _open(write_shard(tmp_path / "b.tar", samples)))


def test_captions_cut_at_the_context_length_are_counted(
    tiny_encoder: Encoder, tmp_path: Path
) -> None:
    samples = [(png_bytes(noise_image(i)), f"cat {i} " * (20 if i < 2 else 1)) for i in range(5)]
    reader = _open(write_shard(tmp_path / "a.tar", samples))
    assert evaluate_retrieval(Job(tiny_encoder, 2), reader)["num_truncated"] == 2


def _rank(rank: int, folder: Path, paths: list[Path], model: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    encoder = clipkit.load(model, device="cpu")
    results = []
    for path in paths:
        try:
            results.append(
                evaluate_retrieval(
                    Job(encoder, 4, rank=rank, world_size=2),
                    _open(path),
                    gallery=_open(paths[0], caption="none"),
                )
            )
        except DataError as error:
            results.append((str(error), error.said))
    (folder / f"rank-{rank}").write_bytes(pickle.dumps(results))
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_equal_one_process_also_with_uneven_and_empty_shares(
    tiny_encoder: Encoder, tiny_folder: Path, tmp_path: Path
) -> None:
    paths = [noise_shard(tmp_path / f"{n}.tar", n) for n in (11, 1, 2)]
    # The first rank's share is broken as a whole, and then all shares are.
    good = [(png_bytes(noise_image(i)), f"cat {i} " * (20 * i)) for i in range(1, 5)]
    paths.append(write_shard(tmp_path / "half.tar", [(b"x", "dog")] * 4 + good))
    paths.append(write_shard(tmp_path / "none.tar", [(b"x", "dog")] * 4))
    gallery = _open(paths[0], caption="none")
    expected = []
    for path in paths[:-1]:
        expected.append(evaluate_retrieval(Job(tiny_encoder), _open(path), gallery=gallery))
    mp.spawn(_rank, args=(tmp_path, paths, tiny_folder), nprocs=2)
    for rank in range(2):
        *results, (error, said) = pickle.loads((tmp_path / f"rank-{rank}").read_bytes())
        assert results == expected, f"rank {rank}"
        assert "no pair of image and caption can be used" in error
        assert said == (rank == 1), "rank 0 says it"
