"""Typed options of a run; see ``schema.py`` for all of them."""

from clipkit.config.load import (
    config_from_dict,
    config_to_dict,
    dump_config,
    flatten,
    load_config,
)
from clipkit.config.schema import Config, PreprocessConfig, SourceConfig, StageConfig

__all__ = [
    "Config",
    "PreprocessConfig",
    "SourceConfig",
    "StageConfig",
    "config_from_dict",
    "config_to_dict",
    "dump_config",
    "flatten",
    "load_config",
]
