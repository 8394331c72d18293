"""A trained model, ready to use: images and texts in any usual form → unit vectors.

Everything that embeds (evaluation, zero-shot, search, the command line) goes through here, and
every image through the one pixel policy of ``clipkit.data``, so that a picture gets the same
vector however it was handed over.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from clipkit.config.schema import PreprocessConfig
from clipkit.data import eval_transform
from clipkit.data.open_clip_tokenizer import cleaning, openai_tokenizer
from clipkit.data.tokenize import load_tokenizer, open_tokenizer, prepare_tokenizer, tokenize
from clipkit.display.console import progress_bar
from clipkit.errors import CheckpointError, ConfigError
from clipkit.inputs import (
    ImageInput,
    check_count,
    clean_text,
    is_one_image,
    list_texts,
    open_image,
)
from clipkit.models import DualEncoder, ForeignEncoder, load_model, load_preprocess
from clipkit.models.cores import map_parts, split_rows
from clipkit.models.fit import (
    TextTower,
    advice,
    different_texts,
    same_vectors,
    text_tower,
    why_unfit,
)
from clipkit.models.foreign import load_foreign
from clipkit.models.kinds import is_open_clip, model_folder
from clipkit.models.layers import kept_weights
from clipkit.models.open_clip import load_open_clip
from clipkit.models.open_clip_config import read_config
from clipkit.models.precision import is_bf16_fast
from clipkit.models.pretrained import load_config
from clipkit.models.products import has_int8_products
from clipkit.types import Batch, Embeddings, Skip

if TYPE_CHECKING:
    from tqdm import tqdm
    from transformers import PreTrainedTokenizerBase

_CPU_PIXELS = 2**20  # at once: 20 images of 224 × 224
_T = TypeVar("_T")


class EncodedBatch(NamedTuple):
    """What one batch became.

    Attributes:
        batch: as the loader gave it, B rows.
        image_embeds: (V, D) float32, the V valid rows of the batch; None if not asked for.
        text_embeds: the same.
    """

    batch: Batch
    image_embeds: np.ndarray | None
    text_embeds: np.ndarray | None


def load(
    folder_or_name: str | Path,
    *,
    device: str | None = None,
    dtype: torch.dtype | None = None,
    tokenizer: str | Path | None = None,
) -> Encoder:
    """A model ready to embed.

    Args:
        folder_or_name: a run's folder, a Hugging Face folder or hub name of a CLIP, SigLIP,
            SigLIP 2 of one resolution or VisionTextDualEncoder, or the folder of an open_clip
            checkpoint.
        device: ``cuda``, ``cuda:1``, ``mps``, ``cpu``; none: the best there is, in this order.
        dtype: of the weights; none: float32.
        tokenizer: a folder or hub name with the tokenizer; none: the model's own.

    Raises:
        CheckpointError: there is no model, it cannot be read, or the tokenizer is not its own.
        ConfigError: the device does not exist here.
    """
    name = model_folder(str(folder_or_name))
    place = _device(device)
    if is_open_clip(name):
        encoder = _load_open_clip(name, place, dtype, tokenizer)
    else:
        encoder = _load_transformers(name, place, dtype, tokenizer)
    _check_texts(encoder, str(tokenizer or name))
    return encoder


def _load_transformers(
    name: str, place: torch.device, dtype: torch.dtype | None, tokenizer: str | Path | None
) -> Encoder:
    config, preprocess = load_config(name), load_preprocess(name)
    words = str(tokenizer or name)
    own = open_tokenizer(words)  # as it is, for what it says about the texts of the model
    _check_fit(name, own, text_tower(config), words)
    model: DualEncoder | ForeignEncoder
    if config.model_type == "clip":
        model = load_model(name, dtype=dtype)
    else:
        model = load_foreign(name, own, dtype=dtype)
    own = prepare_tokenizer(
        own, preprocess.context_length, words, slow=not isinstance(model, DualEncoder)
    )
    return Encoder(model.to(place), preprocess, own, place, name=name)


def _load_open_clip(
    name: str, place: torch.device, dtype: torch.dtype | None, tokenizer: str | Path | None
) -> Encoder:
    config = read_config(Path(name))
    length = config.preprocess.context_length
    words = str(tokenizer or name)
    if config.own_tokenizer or tokenizer is not None:
        own = load_tokenizer(words, context_length=length)
    else:
        own = openai_tokenizer(name, context_length=length, clean=config.clean)
    tower = TextTower(
        config.preprocess.vocab_size, config.pools_end, greatest=config.pools_end is None
    )
    # Before the cleaning, which the files of a tokenizer do not tell.
    _check_fit(name, own, tower, words)
    if config.own_tokenizer and tokenizer is None:
        own = cleaning(own, name, config.clean)
    end = own("a")["input_ids"][-1]
    model = load_open_clip(Path(name), config, end, dtype=dtype).to(place)
    return Encoder(model, config.preprocess, own, place, name=name)


def _check_fit(name: str, own: PreTrainedTokenizerBase, tower: TextTower, words: str) -> None:
    """
    Raises:
        CheckpointError: the tokenizer is not the model's.
    """
    if reason := why_unfit(own, tower, words):
        whose, then = "its tokenizer", advice(words)
        if words != name:
            whose, then = f"the tokenizer {words}", "name the one that the model was trained with"
        raise CheckpointError(f"{name}: {whose} does not fit the model: {reason}; {then}.")


def _check_texts(encoder: Encoder, words: str) -> None:
    """Embeds a few texts: whatever else is wrong, two of them with one vector tell of it.

    Raises:
        CheckpointError: two different texts have one vector.
    """
    texts = different_texts(encoder.tokenizer, encoder.preprocess.context_length)
    if len(texts) < 2:
        raise CheckpointError(
            f"{encoder.name}: its tokenizer makes the same tokens of every text, of "
            f"{encoder.preprocess.context_length} at most; {advice(words)}."
        )
    embeds = encoder.encode_text(texts)
    if not np.isfinite(embeds).all():
        raise CheckpointError(
            f"{encoder.name}: the vectors of texts are not finite, so the weights are damaged; "
            "copy or download the folder again."
        )
    if pair := same_vectors(embeds):
        one, other = (texts[i] for i in pair)
        raise CheckpointError(
            f"{encoder.name}: '{one}' and '{other}' have one vector, so the model cannot tell "
            f"texts apart; its tokenizer may be another model's: {advice(words)}."
        )


class Encoder:
    """Embeds images and texts with a model: one loaded by ``load``, or one in training.

    A model in training is put into evaluation mode for each call and back after it.

    Args:
        model: on ``device`` already.
        preprocess: how pixels and tokens are made.
        tokenizer: the one the model was trained with.
        device: where the model is.
        name: the folder or hub name it was loaded from, for messages and manifests.
    """

    def __init__(
        self,
        model: DualEncoder | ForeignEncoder,
        preprocess: PreprocessConfig,
        tokenizer: PreTrainedTokenizerBase,
        device: torch.device | str,
        *,
        name: str | None = None,
    ) -> None:
        self.model = model
        self.preprocess = preprocess
        self.tokenizer = tokenizer
        self.device = torch.device(device)
        self.name = name
        self._int8 = False

    @property
    def dtype(self) -> torch.dtype:
        """What the towers compute in."""
        if self._int8:
            return torch.int8
        return self.model.compute_dtype or next(self.model.parameters()).dtype

    @property
    def embed_dim(self) -> int:
        """D."""
        return self.model.embed_dim

    @property
    def scale(self) -> float:
        """The inverse temperature that cosines are multiplied by before a softmax."""
        return float(self.model.logit_scale.detach().float().exp())

    @property
    def bias(self) -> float | None:
        """What is added to cosines times ``scale`` before a sigmoid, in models that answer yes or
        no to each label (SigLIP); None in those whose labels share one softmax."""
        bias = self.model.logit_bias
        return None if bias is None else float(bias.detach())

    @cached_property
    def folder(self) -> Path:
        """The local folder of the model's files; for a hub name, in the hub's cache.

        Raises:
            CheckpointError: the model is not saved anywhere, as while it is being trained.
        """
        if self.name is None:
            raise CheckpointError(
                "this model has no folder; save it and load it with clipkit.load first."
            )
        if Path(self.name).is_dir():
            return Path(self.name)
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(self.name, "config.json")
        if not isinstance(found, str):
            raise CheckpointError(f"{self.name}: it is no longer in the hub's cache; load it again")
        return Path(found).parent

    def encode_image(
        self,
        images: ImageInput | Iterable[ImageInput],
        *,
        batch_size: int = 64,
        progress: bool = False,
    ) -> np.ndarray:
        """Image embeddings.

        Args:
            images: one image or several. An image is a PIL image, a path (``str`` or
                ``Path``), the ``bytes`` of an image file, an (H, W, 3) uint8 array or a
                (3, H, W) uint8 tensor, RGB. Several: a list, an array or tensor with one
                dimension more, or any iterable, which is read batch by batch.
            batch_size: images at a time.
            progress: whether to show a progress bar.

        Returns:
            (D,) for one image, (N, D) for several; float32, unit length.

        Raises:
            DataError: an image cannot be read; its index and the reason are named.
            ClipkitError: an item is of another kind.
            ConfigError: ``batch_size`` is below 1.
        """
        check_count("batch_size", batch_size)
        single = is_one_image(images)
        items: Iterable[ImageInput] = [images] if single else images  # type: ignore[list-item, assignment]
        parts: list[np.ndarray] = []
        # One by one: of a stream of images only the model's pixels are held, a batch of them.
        pixels = (
            eval_transform(open_image(item, where=f"images[{i}]"), self.preprocess)
            for i, item in enumerate(items)
        )
        with _bar(items, "image", progress) as bar:
            for chunk in _chunks(pixels, batch_size):
                parts.append(self._embed_pixels(torch.stack(chunk)))
                bar.update(len(chunk))
        embeds = _concatenate(parts, self.embed_dim)
        return embeds[0] if single else embeds

    def encode_text(
        self, texts: str | Iterable[str], *, batch_size: int = 256, progress: bool = False
    ) -> np.ndarray:
        """Text embeddings. A ``str`` is text, never the name of a file.

        A text longer than the model's context is cut; a warning says how many were.

        Args:
            texts: one text or several.
            batch_size: texts at a time.
            progress: whether to show a progress bar.

        Returns:
            (D,) for one text, (N, D) for several; float32, unit length.

        Raises:
            ClipkitError: an item is no text, or an empty one; its index is named.
            ConfigError: ``batch_size`` is below 1.
        """
        check_count("batch_size", batch_size)
        single = isinstance(texts, str)
        items = list_texts(texts)
        cleaned = [clean_text(item, where=f"texts[{i}]") for i, item in enumerate(items)]
        # Neighbours of one length need little padding: bytes stand for tokens well enough.
        order = sorted(range(len(cleaned)), key=lambda i: len(cleaned[i].encode()))
        embeds = np.empty((len(cleaned), self.embed_dim), dtype=np.float32)
        cut = 0
        with _bar(items, "text", progress) as bar:
            for rows in _chunks(order, batch_size):
                input_ids, number = tokenize(
                    self.tokenizer,
                    [cleaned[i] for i in rows],
                    context_length=self.preprocess.context_length,
                )
                embeds[rows] = self._embed_ids(input_ids)
                cut += number
                bar.update(len(rows))
        if cut:
            _warn_cut(cut, len(items), self.preprocess.context_length)
        return embeds[0] if single else embeds

    def encode_batches(
        self, loader: Iterable[Batch], *, images: bool = True, texts: bool = True
    ) -> Iterator[EncodedBatch]:
        """Embeds a loader batch by batch, for what does not fit into memory as a whole.

        Args:
            loader: see ``clipkit.data.build_eval_loader``.
            images: whether to embed the images.
            texts: whether to embed the captions.
        """
        for batch in loader:
            yield EncodedBatch(
                batch,
                self._embed_pixels(batch.pixel_values[batch.valid]) if images else None,
                self._embed_ids(batch.input_ids[batch.valid]) if texts else None,
            )

    def encode_loader(
        self,
        loader: Iterable[Batch],
        *,
        images: bool = True,
        texts: bool = True,
        progress: str | None = None,
    ) -> Embeddings:
        """Embeds all of a loader. Rows that are not valid are left out and in ``skipped``.

        Args:
            loader: see ``clipkit.data.build_eval_loader``.
            images: whether to embed the images.
            texts: whether to embed the captions.
            progress: what a progress bar says; none: no bar.
        """
        keys: list[str] = []
        skipped: list[Skip] = []
        image_parts, text_parts = [], []
        with progress_bar(progress or "", None, "sample", show=progress is not None) as bar:
            for batch, image_embeds, text_embeds in self.encode_batches(
                loader, images=images, texts=texts
            ):
                keys += [key for key, valid in zip(batch.keys, batch.valid, strict=True) if valid]
                skipped += batch.skipped
                if image_embeds is not None:
                    image_parts.append(image_embeds)
                if text_embeds is not None:
                    text_parts.append(text_embeds)
                bar.update(len(batch.keys))
        return Embeddings(
            keys=keys,
            image_embeds=_concatenate(image_parts, self.embed_dim) if images else None,
            text_embeds=_concatenate(text_parts, self.embed_dim) if texts else None,
            skipped=skipped,
        )

    @contextmanager
    def computing(self, dtype: torch.dtype | None) -> Iterator[None]:
        """Has the towers compute in another dtype for a while, weights rounded once if they are not
        in training; None: in that of the weights. Embeddings are float32 always.

        Args:
            dtype: int8: of the matrix products in the layers of a CLIP, on a CPU; the rest in bf16
                where that is fast.

        Raises:
            ConfigError: int8, which this model or machine cannot compute in.
        """
        int8 = dtype == torch.int8
        if int8:
            self.refuse_int8()
            dtype = torch.bfloat16 if is_bf16_fast(self.device) else torch.float32
        before = self.model.compute_dtype, self._int8
        self.model.compute_dtype, self._int8 = dtype, int8
        try:
            with self._keeping(int8=int8):
                yield
        finally:
            self.model.compute_dtype, self._int8 = before

    def _embed_pixels(self, pixel_values: Tensor) -> np.ndarray:
        if not len(pixel_values):
            return np.zeros((0, self.embed_dim), dtype=np.float32)

        @torch.inference_mode()
        def embed(pixels: Tensor) -> np.ndarray:
            return _to_numpy(self.model(pixel_values=pixels.to(self.device)).image_embeds)

        with self._evaluating() as threads:
            if self.device.type != "cpu":
                return embed(pixel_values)
            parts = split_rows(pixel_values, _CPU_PIXELS // pixel_values.shape[-1] ** 2)
            return np.concatenate(map_parts(embed, parts) if threads else list(map(embed, parts)))

    def _embed_ids(self, input_ids: Tensor) -> np.ndarray:
        if not len(input_ids):
            return np.zeros((0, self.embed_dim), dtype=np.float32)
        with self._evaluating(), torch.inference_mode():
            return _to_numpy(self.model(input_ids=input_ids).text_embeds)

    @contextmanager
    def _evaluating(self) -> Iterator[bool]:
        """In evaluation mode. Whether the model may run in several threads: not one in training,
        which may be compiled, or have hooks that are not made for it."""
        training = self.model.training
        try:
            with self._keeping():
                self.model.eval()
                yield not training
        finally:
            self.model.train(training)

    @contextmanager
    def _keeping(self, *, int8: bool | None = None) -> Iterator[None]:
        """Weights are rounded and joined once, if they are not in training."""
        with nullcontext() if self.model.training else kept_weights(self.model, int8=int8):
            yield

    def refuse_int8(self) -> None:
        """Refuses to compute in int8 what cannot be.

        Raises:
            ConfigError: says why.
        """
        if reason := self.why_not_int8():
            raise ConfigError(f"int8: {reason}; take bf16 or fp32")

    def why_not_int8(self) -> str | None:
        """Why this model, here, cannot compute in int8; None where it can."""
        if not isinstance(self.model, DualEncoder):
            return f"{self.name} is no CLIP"
        if self.model.training:
            return "this model is in training"
        if self.device.type != "cpu":
            return f"it is for CPUs, and the model is on {self.device}"
        if not has_int8_products():
            return "this CPU has no fast products for it (VNNI or AMX)"
        return None


def _device(name: str | None) -> torch.device:
    if name is None:
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        torch.empty(0, device=name)
    except Exception as error:  # torch raises RuntimeError, AssertionError and others here
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise ConfigError(f"device: {name} cannot be used here ({reason})") from error
    return torch.device(name)


def _warn_cut(cut: int, total: int, context_length: int) -> None:
    import warnings

    warnings.warn(
        f"{cut} of {total} texts were longer than the model's {context_length} tokens and were cut",
        stacklevel=3,
    )


def _chunks(items: Iterable[_T], size: int) -> Iterator[list[_T]]:
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk


def _bar(items: object, unit: str, progress: bool) -> tqdm[Any]:
    total = len(items) if hasattr(items, "__len__") else None
    return progress_bar("embed", total, unit, show=progress)


def _concatenate(parts: list[np.ndarray], dim: int) -> np.ndarray:
    return np.concatenate(parts) if parts else np.zeros((0, dim), dtype=np.float32)


def _to_numpy(embeds: Tensor) -> np.ndarray:
    array: np.ndarray = embeds.float().cpu().numpy()
    return array
