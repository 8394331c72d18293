"""clipkit: contrastive image-text pretraining, embeddings and zero-shot classification.

The public names load on first use, so that ``import clipkit`` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from clipkit._version import __version__

if TYPE_CHECKING:
    from clipkit.config import Config, load_config
    from clipkit.encoder import Encoder, load
    from clipkit.errors import ClipkitError
    from clipkit.evaluation.curves import training_curves
    from clipkit.evaluation.similarity import similarity_matrix
    from clipkit.evaluation.zero_shot import ZeroShotClassifier
    from clipkit.retrieval.embed import embed
    from clipkit.retrieval.index import Index
    from clipkit.retrieval.query import SearchQuery
    from clipkit.retrieval.store import EmbeddingStore
    from clipkit.training.loop import train
    from clipkit.training.start import build_encoder

_HOME = {
    "ClipkitError": "clipkit.errors",
    "Config": "clipkit.config",
    "EmbeddingStore": "clipkit.retrieval.store",
    "Encoder": "clipkit.encoder",
    "Index": "clipkit.retrieval.index",
    "SearchQuery": "clipkit.retrieval.query",
    "ZeroShotClassifier": "clipkit.evaluation.zero_shot",
    "build_encoder": "clipkit.training.start",
    "embed": "clipkit.retrieval.embed",
    "load": "clipkit.encoder",
    "load_config": "clipkit.config",
    "similarity_matrix": "clipkit.evaluation.similarity",
    "train": "clipkit.training.loop",
    "training_curves": "clipkit.evaluation.curves",
}

__all__ = [
    "ClipkitError",
    "Config",
    "EmbeddingStore",
    "Encoder",
    "Index",
    "SearchQuery",
    "ZeroShotClassifier",
    "__version__",
    "build_encoder",
    "embed",
    "load",
    "load_config",
    "similarity_matrix",
    "train",
    "training_curves",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'clipkit' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
