"""A run's steps → stages: small images, short texts and few patches first, all of it at the end.

The batch stays as large, and the order of samples, which is a function of the position, goes on
across a border as if there were none.
"""

from __future__ import annotations

import dataclasses

from clipkit.config import Config, PreprocessConfig
from clipkit.errors import ConfigError

_SHORTEST = 3  # tokens: start, one, end


@dataclasses.dataclass(frozen=True)
class Stage:
    """The steps from ``first`` on, before ``end``."""

    first: int
    end: int
    preprocess: PreprocessConfig
    patch_dropout: float

    def __str__(self) -> str:
        size = self.preprocess.image_size
        told = f"{size}×{size} pixels, {self.preprocess.context_length} tokens"
        dropped = f", {self.patch_dropout:.0%} of the patches dropped" if self.patch_dropout else ""
        return f"steps {self.first + 1} to {self.end}: {told}{dropped}"


def build_stages(config: Config, steps: int, patch_size: int) -> list[Stage]:
    """The stages of a run, in order; one, where none are given.

    Args:
        config: resolved: ``preprocess`` is the model's own.
        steps: of the run.
        patch_size: of the model.

    Raises:
        ConfigError: a stage does not fit the model, or the last is not the model's own.

    Reference: CLIPA, https://arxiv.org/abs/2305.07017, sections 3 and 4.
    """
    own, dropout = config.preprocess, config.model.vision.patch_dropout
    if not config.train.stages:
        return [Stage(0, steps, own, dropout)]
    stages = []
    shares, first = 0.0, 0
    for number, asked in enumerate(config.train.stages):
        key = f"train.stages.{number}"
        size = own.image_size if asked.image_size is None else asked.image_size
        length = own.context_length if asked.context_length is None else asked.context_length
        if size % patch_size:
            near = sorted(
                {max(1, size // patch_size) * patch_size, -(-size // patch_size) * patch_size}
            )
            raise ConfigError(
                f"{key}.image_size: {size} is not a multiple of the patch size {patch_size}; use "
                f"{' or '.join(map(str, near))}"
            )
        if size > own.image_size:
            raise ConfigError(f"{key}.image_size: {size} is more than the model's {own.image_size}")
        if not _SHORTEST <= length <= own.context_length:
            raise ConfigError(
                f"{key}.context_length: {length}; from {_SHORTEST} to the model's "
                f"{own.context_length}"
            )
        shares += asked.share
        end = round(shares * steps)
        if end <= first:
            raise ConfigError(f"{key}.share: {asked.share} of {steps} steps is not one step")
        preprocess = dataclasses.replace(own, image_size=size, context_length=length)
        dropped = dropout if asked.patch_dropout is None else asked.patch_dropout
        stages.append(Stage(first, end, preprocess, dropped))
        first = end
    last = stages[-1].preprocess
    if last != own:
        raise ConfigError(
            f"train.stages.{len(stages) - 1}: the last stage is at {last.image_size} pixels and "
            f"{last.context_length} tokens, but the model is used at {own.image_size} and "
            f"{own.context_length}; add a stage that leaves both out"
        )
    return stages
