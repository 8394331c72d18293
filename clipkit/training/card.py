"""The model card that a run writes beside its weights."""

from __future__ import annotations

from collections.abc import Mapping

from clipkit._version import __version__
from clipkit.config import Config, dump_config


def model_card(
    config: Config, samples: str, steps: int, results: Mapping[str, Mapping[str, float]]
) -> str:
    """Markdown with a YAML head: what the model is, how it was made, how it does.

    Args:
        config: the resolved config of the run.
        samples: how many the training source has, in words.
        steps: optimizer steps taken.
        results: retrieval metrics by split.
    """
    paths = [source.path for source in config.data.mix.values()] or [config.data.train.path]
    data = " + ".join(f"`{path}`" for path in paths)
    seen = steps * config.train.batch_size
    rows = [
        f"| {split} | {metrics['num_images']:,} | {metrics['text_to_image_R@1']:.3f} | "
        f"{metrics['text_to_image_R@5']:.3f} | {metrics['image_to_text_R@1']:.3f} | "
        f"{metrics['image_to_text_R@5']:.3f} |"
        for split, metrics in results.items()
    ]
    table = "\n".join(
        [
            "| split | images | text→image R@1 | R@5 | image→text R@1 | R@5 |",
            "|---|---|---|---|---|---|",
            *rows,
        ]
    )
    return f"""---
library_name: transformers
pipeline_tag: zero-shot-image-classification
tags: [clip, clipkit]
---
# {config.output.rstrip("/").split("/")[-1]}

A contrastive image-text model (CLIP, https://arxiv.org/abs/2103.00020), trained with clipkit
{__version__}.

- Data: {data}, {samples} pairs; {seen:,} pairs seen in {steps:,} steps of
  {config.train.batch_size}.
- Images: {config.preprocess.image_size}×{config.preprocess.image_size} pixels; captions: up to
  {config.preprocess.context_length} tokens.

## Retrieval

{table if rows else "No split was evaluated."}

## Use

```python
import clipkit

model = clipkit.load("path/of/this/folder")
model.encode_text(["a caption"])
```

It loads as well with `AutoModel`, `AutoProcessor`, `pipeline("zero-shot-image-classification")` and
`SentenceTransformer`, without clipkit.

## The run's config

```yaml
{dump_config(config).rstrip()}
```
"""
