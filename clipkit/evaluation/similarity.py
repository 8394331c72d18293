"""A batch of images × texts → their cosines, as a figure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from clipkit.atomic import write_text
from clipkit.display.console import escape_control, format_table, shorten
from clipkit.display.matrix import MatrixFigure
from clipkit.encoder import Encoder
from clipkit.errors import CheckpointError, ConfigError
from clipkit.evaluation.images import check_faults, embed_images
from clipkit.inputs import ImageInput, list_texts

if TYPE_CHECKING:
    import pandas as pd

_SHOWN, _PRINTED = 40, (20, 6)  # rows and columns of the figure; rows, columns in a terminal


@dataclass(repr=False, eq=False)
class SimilarityMatrix:
    """How near each image is to each text; a notebook shows it as a figure.

    Attributes:
        scores: (N, M) float32 cosines, NaN for an image that cannot be read.
        names: N names of the images.
        texts: M texts.
        thumbnails: of the images, WebP files; None where none was kept.
    """

    scores: np.ndarray
    names: list[str]
    texts: list[str]
    thumbnails: list[bytes | None]

    def to_pandas(self) -> pd.DataFrame:
        """A row an image, a column a text."""
        import pandas as pd

        return pd.DataFrame(self.scores, index=self.names, columns=self.texts)

    def save(self, path: str | Path) -> None:
        """Writes the figure.

        Args:
            path: ``.svg``, or ``.png``, whose letters are Latin ones.

        Raises:
            ConfigError: another ending.
            CheckpointError: the file cannot be written.
        """
        path = Path(str(path))
        if path.suffix == ".svg":
            write_text(path, self._figure().svg())
        elif path.suffix == ".png":
            try:
                self._figure().image().save(path)
            except OSError as error:
                raise CheckpointError(f"{path}: cannot be written ({error.strerror})") from None
        else:
            raise ConfigError(f"{path}: give a name that ends in .svg or .png")

    def __repr__(self) -> str:
        rows, columns = _PRINTED
        table = format_table(
            ["", *(shorten(text, 20) for text in self.texts[:columns])],
            [
                [shorten(escape_control(name), 40), *(f"{score:.3f}" for score in row[:columns])]
                for name, row in zip(self.names[:rows], self.scores, strict=False)
            ],
            right=range(1, columns + 1),
        )
        return f"cosines of {len(self.names):,} images with {len(self.texts):,} texts\n{table}"

    def _repr_html_(self) -> str:
        return f'<div style="overflow-x:auto">{self._figure().svg()}</div>'

    def _figure(self) -> MatrixFigure:
        names = [Path(name).name for name in self.names]
        return MatrixFigure(self.scores, names, self.texts, self.thumbnails, most=_SHOWN)


def similarity_matrix(
    encoder: Encoder,
    images: ImageInput | Iterable[ImageInput],
    texts: str | Iterable[str],
    *,
    batch_size: int = 64,
    urls: bool = False,
    progress: bool = True,
) -> SimilarityMatrix:
    """The cosine of each image with each text.

    Example:
        >>> clipkit.similarity_matrix(model, "pictures/", ["a cat", "a dog"]).save("cats.svg")

    Args:
        encoder: the model.
        images: N of them; see ``ZeroShotClassifier.__call__``, as for the rest. One that cannot
            be read keeps its row, of NaN, with a warning.
        texts: M of them.
        batch_size: images at a time.
        urls: whether URLs are fetched.
        progress: whether to show a progress bar.

    Raises:
        ConfigError: ``encoder`` is no model.
        DataError: not one image can be read.
        ClipkitError: a text is empty, or there is none.
    """
    if not isinstance(encoder, Encoder):
        raise ConfigError(
            f"model: a {type(encoder).__name__}; give what clipkit.load returns for it"
        )
    items = list_texts(texts)
    if not items:
        raise ConfigError("texts: there are none; give one at least")
    text_embeds = encoder.encode_text(items)
    parts = list(
        embed_images(
            encoder,
            images,
            batch_size=batch_size,
            urls=urls,
            progress=progress,
            thumbnails=_SHOWN,
        )
    )
    check_faults([fault for part in parts for fault in part.faults])
    scores = [part.embeds @ text_embeds.T for part in parts]
    return SimilarityMatrix(
        np.concatenate([np.zeros((0, len(items)), np.float32), *scores]),
        [name for part in parts for name in part.names],
        items,
        [small for part in parts for small in part.thumbnails],
    )
