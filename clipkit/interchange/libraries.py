"""What was exported, as transformers and open_clip themselves load and run it."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from clipkit.config.schema import ForeignPreprocess
from clipkit.encoder import Encoder, load
from clipkit.interchange.compare import Loaded

_PILLOW = "as open_clip resizes with Pillow and rounds the corner of the crop"
OPEN_CLIP_USE = """A checkpoint of open_clip:

```python
import open_clip

model, _, preprocess = open_clip.create_model_and_transforms("local-dir:path/of/this/folder")
tokenizer = open_clip.get_tokenizer("local-dir:path/of/this/folder")
```
"""


def load_transformers(folder: Path, encoder: Encoder) -> Loaded:
    """By AutoModel, AutoImageProcessor and AutoTokenizer."""
    from transformers import AutoImageProcessor, AutoModel, AutoTokenizer, __version__

    with quiet():
        model = AutoModel.from_pretrained(folder).eval()
    processor = AutoImageProcessor.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)

    @torch.inference_mode()
    def embed_images(images: Sequence[Image.Image]) -> np.ndarray:
        pixels = processor(images=list(images), return_tensors="pt")
        return _unit(model.get_image_features(**pixels).pooler_output)

    @torch.inference_mode()
    def embed_texts(texts: Sequence[str]) -> np.ndarray:
        ids = tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")
        return _unit(model.get_text_features(**ids).pooler_output)

    preprocess = encoder.preprocess
    pillow = isinstance(preprocess, ForeignPreprocess) and preprocess.library == "open_clip"
    return Loaded(
        f"transformers {__version__}",
        embed_images,
        embed_texts,
        why=_PILLOW if pillow else "",
    )


def load_open_clip(folder: Path, encoder: Encoder) -> Loaded:
    """By open_clip where it is installed; else by clipkit's own reader of its checkpoints."""
    try:
        import open_clip
    except ImportError:
        again = load(folder, device="cpu", tokenizer=folder)
        return Loaded(
            "clipkit's own reading of the checkpoint",
            lambda images: again.encode_image(images),
            lambda texts: again.encode_text(texts),
            why=_PILLOW,
            missing="open_clip_torch",
        )
    with quiet():
        model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}")
        tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    model.eval()

    @torch.inference_mode()
    def embed_images(images: Sequence[Image.Image]) -> np.ndarray:
        return _unit(model.encode_image(torch.stack([transform(image) for image in images])))

    @torch.inference_mode()
    def embed_texts(texts: Sequence[str]) -> np.ndarray:
        return _unit(model.encode_text(tokenizer(list(texts))))

    return Loaded(
        f"open_clip {open_clip.__version__}",
        embed_images,
        embed_texts,
        why=_PILLOW,
    )


def _unit(features: Tensor) -> np.ndarray:
    """(B, D) → (B, D) of unit length."""
    array: np.ndarray = torch.nn.functional.normalize(features.float(), dim=-1).numpy()
    return array


@contextmanager
def quiet() -> Iterator[Any]:
    """Without what libraries log and show while they load and trace."""
    import warnings

    from transformers.utils import logging as of_transformers

    shown = of_transformers.is_progress_bar_enabled()
    of_transformers.disable_progress_bar()
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
        if shown:
            of_transformers.enable_progress_bar()
