"""Two sources → how many images of one are in the other: evaluation that was trained on."""

from __future__ import annotations

import numpy as np

from clipkit.config.schema import Config, SourceConfig
from clipkit.data import files
from clipkit.data.holdout import hold_back
from clipkit.data.image_ids import ImageFiles
from clipkit.data.mixture import MixtureReader
from clipkit.data.reader import Reader, SampleError
from clipkit.data.source import open_source

_MOST_BYTES = 8 * 2**30  # of images that are read to compare them


def shared_images(evaluated: Reader, training: Reader) -> int | None:
    """How many different images of a source are in another one, by size and checksum.

    Images of sizes that only one of the two has are not read; those in tars, whose index knows
    the checksum, never are.

    Args:
        evaluated: the source whose images are counted.
        training: the source they are looked for in.

    Returns:
        None where it is not known: a source is remote, or more than 8 GiB would have to be read.
    """
    ours, theirs = evaluated.image_files(), training.image_files()
    if ours is None or theirs is None or evaluated.access.remote or training.access.remote:
        return None
    sizes = np.intersect1d(ours.sizes[ours.sizes >= 0], theirs.sizes[theirs.sizes >= 0])
    found = []
    for reader, images in ((evaluated, ours), (training, theirs)):
        same_size = np.flatnonzero(np.isin(images.sizes, sizes))
        if not _in_tars(reader) and images.sizes[same_size].sum() > _MOST_BYTES:
            return None
        found.append(_contents(images, same_size))
    return len(found[0] & found[1])


def training_reader(config: Config) -> Reader | None:
    """The samples that a run with this config trains on, without those it holds back; None where
    they are remote.

    Raises:
        DataError: it is not there any more, or cannot be read.
    """
    sources: list[SourceConfig] = [*config.data.mix.values()] or [config.data.train]
    if any(files.is_url(source.path) or source.format == "datasets" for source in sources):
        return None
    parts = [open_source(source, progress=False) for source in sources]
    mixed = MixtureReader({str(i): part for i, part in enumerate(parts)}, [None] * len(parts))
    reader = mixed if config.data.mix else parts[0]
    return hold_back(reader, config.data.holdout)[0] if config.data.holdout else reader


def _contents(images: ImageFiles, numbers: np.ndarray) -> set[tuple[int, int]]:
    """Size and checksum of some of the files."""
    checksums = images.checksums(numbers)
    return set(zip(images.sizes[numbers].tolist(), checksums.tolist(), strict=True))


def _in_tars(reader: Reader) -> bool:
    try:
        return reader.place(0)[1] is not None
    except SampleError:
        return False
