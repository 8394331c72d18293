"""One small model, its tokenizer, and six pairs, for the tests of this folder."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from clipkit.config.schema import ModelConfig, PreprocessConfig, TowerConfig, VisionConfig
from clipkit.data.tokenize import tokenize, train_tokenizer
from clipkit.models import DualEncoder, build_model

CAPTIONS = [
    "a photo of two dogs",
    "a red car near the house",
    "一只猫坐在垫子上",
    "woman: dark skin tone",
]
TEXTS = ["dogs", "a photo of two dogs", "a", "一只猫坐在垫子上", "b", "a red car near the house"]


@pytest.fixture(scope="session")
def small_tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(CAPTIONS * 9, vocab_size=600, context_length=24)


@pytest.fixture
def ids(small_tokenizer) -> Tensor:
    return tokenize(small_tokenizer, TEXTS, context_length=24)[0]


@pytest.fixture
def pixels() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8, generator=generator)


@pytest.fixture
def small_preprocess() -> PreprocessConfig:
    return PreprocessConfig(image_size=32, context_length=24)


@pytest.fixture
def small_config() -> ModelConfig:
    return ModelConfig(
        embed_dim=48,
        vision=VisionConfig(width=64, layers=2, patch_size=8),
        text=TowerConfig(width=128, layers=3),
    )


@pytest.fixture
def small_model(small_config, small_preprocess, small_tokenizer) -> DualEncoder:
    return build_model(
        small_config, small_preprocess, small_tokenizer, init_temperature=0.07, seed=0
    )
