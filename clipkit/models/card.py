"""The model card: README.md of a saved model, for people and for the hub."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from clipkit.config.schema import PreprocessConfig
    from clipkit.models.dual_encoder import DualEncoder


USE_HEADING = "Use"


def default_card(model: DualEncoder, preprocess: PreprocessConfig, name: str) -> str:
    """What the model is and how to load it, where nothing more is known about its training."""
    config = model.backbone.config
    vision, text = config.vision_config, config.text_config
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return f"""---
library_name: transformers
pipeline_tag: zero-shot-image-classification
tags:
- clip
- sentence-transformers
- feature-extraction
---

# {name}

A CLIP model ([Radford et al. 2021](https://arxiv.org/abs/2103.00020)): images and texts are
embedded in one space of {model.embed_dim} dimensions.

| | image tower | text tower |
|---|---|---|
| input | {preprocess.image_size} × {preprocess.image_size} pixels, patches of {vision.patch_size} \
| {preprocess.context_length} tokens of {text.vocab_size} |
| width | {vision.hidden_size} | {text.hidden_size} |
| layers | {vision.num_hidden_layers} | {text.num_hidden_layers} |

{parameters:,} parameters.

## {USE_HEADING}

```python
from transformers import pipeline

classify = pipeline("zero-shot-image-classification", model="path/to/this/folder")
classify("photo.jpg", candidate_labels=["a cat", "a dog"], hypothesis_template="{{}}")
```

```python
from PIL import Image
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("path/to/this/folder")
model.similarity(model.encode([Image.open("photo.jpg")]), model.encode(["a cat", "a dog"]))
```
"""
