"""The model card that a run writes beside its weights."""

from __future__ import annotations

from collections.abc import Mapping

from clipkit._version import __version__
from clipkit.config import Config, dump_config
from clipkit.evaluation.card import CONFIG_HEADING, split_table, with_licence
from clipkit.models.card import USE_HEADING


def model_card(
    config: Config,
    samples: str,
    steps: int,
    results: Mapping[str, Mapping[str, float]],
    *,
    parameters: int,
) -> str:
    """Markdown with a YAML head: what the model is, how it was made, how it does, its limits.

    Args:
        config: the resolved config of the run.
        samples: how many the training source has, in words.
        steps: optimizer steps taken.
        results: retrieval metrics by split.
        parameters: how many the model has.
    """
    size, length = config.preprocess.image_size, config.preprocess.context_length
    measured = split_table(results) if results else "No split was evaluated."
    before = config.model.pretrained
    started = f"Besides what `{before}` was trained on, it" if before else "It"
    card = f"""---
library_name: transformers
pipeline_tag: zero-shot-image-classification
tags: [clip, clipkit]
---
# {config.output.rstrip("/").split("/")[-1]}

A contrastive image-text model (CLIP, https://arxiv.org/abs/2103.00020), trained with clipkit
{__version__}: images and texts become vectors of one space, near one another where they belong
together.

## Data

{_data(config)}, {samples} samples;
{steps * config.train.batch_size:,} samples seen in {steps:,} steps of {config.train.batch_size:,}.

## Recipe

| | |
|---|---|
{_recipe(config, parameters)}

## Retrieval

{measured}

All captions of an image are its right answers; equal captions are one text and equal files one
image; ties count against the model. Chance is the R@1 of a random order. The intervals are
bootstraps over the queries.

## Limits

- {started} has seen the data above and nothing else: what they do not show or name it does not
  know, and what is one-sided or wrong in them it has learned.
- Images are reduced to {size} × {size} pixels, so small things and written words are lost; captions
  are cut after {length} tokens.
- A score is a cosine, no probability: it ranks, and what is high for one caption may be low for
  another.
- What was measured is in the tables of this card, on the data named there. Nothing was measured of
  other kinds of images, other languages, or of how it treats people: measure it on yours before you
  rely on it (`clipkit eval`).

## {USE_HEADING}

```python
import clipkit

model = clipkit.load("path/of/this/folder")
model.encode_text(["a caption"])
```

It loads as well with `AutoModel`, `AutoProcessor`, `pipeline("zero-shot-image-classification")` and
`SentenceTransformer`, without clipkit.

## {CONFIG_HEADING}

```yaml
{dump_config(config).rstrip()}
```
"""
    return with_licence(card, None)


def _data(config: Config) -> str:
    paths = [source.path for source in config.data.mix.values()] or [config.data.train.path]
    return " + ".join(f"`{path}`" for path in paths)


def _recipe(config: Config, parameters: int) -> str:
    model, loss, optim, train = config.model, config.loss, config.optim, config.train
    if model.pretrained:
        architecture = f"from `{model.pretrained}`, frozen: {model.freeze}"
    else:
        architecture = (
            f"image tower {model.vision.layers} × {model.vision.width}, patches of "
            f"{model.vision.patch_size}; text tower {model.text.layers} × {model.text.width}; "
            f"{model.embed_dim} dimensions"
        )
    low, high = config.data.augment.crop_scale
    facts = {
        "model": f"{architecture}; {parameters / 1e6:,.2f} M parameters",
        "loss": f"{loss.kind}, over {train.batch_size:,} pairs at a time",
        "optimizer": f"{optim.name}, learning rate {optim.lr:g}, {optim.schedule}, "
        f"{optim.warmup_steps} steps of warm-up, weight decay {optim.weight_decay:g}",
        "augmentation": f"crops of {low:g} to {high:g} of the area, mirrored with probability "
        f"{config.data.augment.horizontal_flip:g}",
        "precision": train.precision,
        "averaged weights": "no" if train.ema is None else f"yes, decay {train.ema:g}",
    }
    return "\n".join(f"| {name} | {value} |" for name, value in facts.items())
