"""Defaults < YAML file < ``key=value`` → Config. jsonargparse does the typing; this file finds
the mistakes it would report less plainly: unknown keys, duplicate keys, impossible values."""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

from clipkit.config.schema import Config, SourceConfig, StageConfig
from clipkit.config.templates import resolve_templates
from clipkit.config.yaml_text import parse_value, read_yaml
from clipkit.errors import ConfigError

T = TypeVar("T")


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """The config of a run: the defaults, then the file, then the overrides.

    Args:
        path: a YAML file.
        overrides: ``dotted.key=value`` each; the value is read as YAML.

    Raises:
        ConfigError: the file cannot be read, a key does not exist (the nearest is named), a
            value has the wrong type, or values do not fit together.
    """
    tree = read_yaml(Path(path), schema=Config)
    for override in overrides:
        key, sign, value = override.partition("=")
        if not sign or not key:
            raise ConfigError(f"{override}: not an override; write key=value, e.g. optim.lr=5e-4")
        _set(tree, key, parse_value(value, key=key, schema=Config))
    return config_from_dict(tree, where=str(path))


def config_from_dict(tree: dict[str, Any], *, where: str = "config") -> Config:
    """Checks and types a tree of plain values; see :func:`load_config`."""
    config = _typed(Config, _expand_stages(_expand_sources(tree)), where)
    validate(config)
    return config


def source_from_dict(tree: dict[str, Any], *, where: str) -> SourceConfig:
    """Checks and types the plain values of one source.

    Raises:
        ConfigError: a key does not exist, or a value has the wrong type.
    """
    return _typed(SourceConfig, _whole_source(tree, where), where)


def options_from_dict(schema: type[T], tree: dict[str, Any]) -> T:
    """Checks and types the plain values of any dataclass of options; a source, or a list of them,
    may be given as a path.

    Raises:
        ConfigError: a key does not exist (the nearest is named), or a value has the wrong type.
    """
    tree = dict(tree)
    for key, kind in typing.get_type_hints(schema).items():
        value = tree.get(key)
        if kind is SourceConfig or kind == SourceConfig | None:
            tree[key] = _whole_source(value, key)
            if value is None:
                del tree[key]
        elif kind == list[SourceConfig] and value is not None:
            each = [value] if isinstance(value, str | dict) else value
            if not isinstance(each, list):
                raise ConfigError(f"{key}: a path or a list of them is wanted, got {value!r}")
            tree[key] = [_source(part, f"{key}.{number}") for number, part in enumerate(each)]
    return _typed(schema, tree, schema.__name__)


def _source(value: Any, key: str) -> dict[str, Any]:
    """The whole tree of a source in a list; of one in a list, jsonargparse says less plainly what
    is wrong."""
    value = _whole_source(value, key)
    _check_keys(value, SourceConfig, prefix=f"{key}.")
    if not value.get("path"):
        raise ConfigError(f"{key}: no source is named; give a file, folder, glob or URL")
    try:
        return dataclasses.asdict(_typed(SourceConfig, value, key))
    except ConfigError as error:
        raise ConfigError(f"{key}.{error}") from None


def _typed(schema: type[T], tree: dict[str, Any], where: str) -> T:
    from jsonargparse import ArgumentError, ArgumentParser

    _check_keys(tree, schema, prefix="", whole=schema)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(schema, None, sub_configs=False)
    try:
        parsed = parser.instantiate(parser.parse_object(tree))
    except ArgumentError as error:
        raise ConfigError(_plain(str(error), where)) from None
    return schema(**{f.name: parsed[f.name] for f in dataclasses.fields(schema)})  # type: ignore[arg-type]


def config_to_dict(config: Config) -> dict[str, Any]:
    """The resolved config as plain values: what :func:`config_from_dict` takes back."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [plain(item) for item in value]
        return value

    return {key: plain(value) for key, value in dataclasses.asdict(config).items()}


def dump_config(config: Config) -> str:
    """The resolved config as YAML, in the order of the schema."""
    return yaml.safe_dump(config_to_dict(config), sort_keys=False, allow_unicode=True)


def flatten(tree: Any, prefix: str = "") -> typing.Iterator[tuple[str, Any]]:
    """Dotted key and value of each leaf of a tree; an empty section is a leaf."""
    if isinstance(tree, dict) and tree:
        for key, value in tree.items():
            yield from flatten(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, tree


def validate(config: Config) -> None:
    """Refuses values that are well typed and still cannot work, each in one line.

    Raises:
        ConfigError: names the key, the value, and what would do.
    """
    _check_values(config_to_dict(config))
    train, data, model = config.train, config.data, config.model
    if Path(config.output).name in ("", ".."):
        raise ConfigError(
            f"output: {config.output!r} does not name a folder of its own; use, e.g., runs/mine"
        )
    if data.train.path and data.mix:
        raise ConfigError("data.train, data.mix: both name sources; leave one of them out")
    sources = {"data.train": data.train}
    sources |= {f"data.mix.{name}": source for name, source in data.mix.items()}
    sources |= {f"data.evaluate.{name}": source for name, source in data.evaluate.items()}
    for key, source in sources.items():
        if not source.path and (key != "data.train" or not data.mix):
            raise ConfigError(f"{key}: no source is named; give a file, folder, glob or URL")
        if (source.filter.score is None) != (source.filter.min_score is None):
            raise ConfigError(f"{key}.filter: score and min_score belong together; set both")
        if not source.templates or not all("{}" in each for each in source.templates):
            raise ConfigError(
                f"{key}.templates: {source.templates}; a list, each with {{}} for the class, "
                "e.g. ['a photo of a {}']"
            )
    if (train.epochs is None) == (train.steps is None):
        found = "both are" if train.epochs is not None else "neither is"
        raise ConfigError(f"train.epochs, train.steps: {found} set; set one, the other to null")
    if model.pretrained is None:
        size, patch = config.preprocess.image_size, model.vision.patch_size
        if size % patch:
            nearest = max(patch, round(size / patch) * patch)
            raise ConfigError(
                f"preprocess.image_size: {size} is not a multiple of model.vision.patch_size "
                f"{patch}; use {nearest}"
            )
        for name, tower in (("vision", model.vision), ("text", model.text)):
            heads = tower.heads or max(1, tower.width // 64)
            if tower.width % heads:
                raise ConfigError(
                    f"model.{name}.heads: width {tower.width} does not divide by {heads} heads"
                )
    if model.vision.patch_dropout >= 1:
        raise ConfigError(
            f"model.vision.patch_dropout: {model.vision.patch_dropout}; a share, below 1"
        )
    if data.holdout >= 1:
        raise ConfigError(f"data.holdout: {data.holdout}; a share of the samples, below 1")
    if data.hard_negatives and data.mix:
        raise ConfigError(
            "data.hard_negatives: it is for one source, and data.mix names several; leave one out"
        )
    if data.hard_negatives > train.batch_size // train.accumulate:
        of = f", in {train.accumulate} parts" if train.accumulate > 1 else ""
        raise ConfigError(
            f"data.hard_negatives: {data.hard_negatives} do not fit in a batch of "
            f"{train.batch_size}{of}; take fewer, such as 4"
        )
    splits = [*data.evaluate, *(["holdout"] if data.holdout else [])]
    if len(set(splits)) < len(splits):
        raise ConfigError("data.evaluate.holdout: data.holdout makes a split of that name")
    if not 0 <= data.augment.horizontal_flip <= 1:
        raise ConfigError("data.augment.horizontal_flip: a probability, from 0 to 1")
    low, high = data.augment.crop_scale
    if not 0 < low <= high <= 1:
        raise ConfigError(
            f"data.augment.crop_scale: {[low, high]}; two shares of the area, 0 < low <= high <= 1"
        )
    ratio_low, ratio_high = data.augment.crop_ratio
    if not 0 < ratio_low <= ratio_high:
        raise ConfigError(
            f"data.augment.crop_ratio: {[ratio_low, ratio_high]}; two ratios, 0 < low <= high"
        )
    if not all(0 <= beta < 1 for beta in config.optim.betas):
        raise ConfigError(f"optim.betas: {list(config.optim.betas)}; each from 0 to below 1")
    if not all(std > 0 for std in config.preprocess.std):
        raise ConfigError(f"preprocess.std: {list(config.preprocess.std)}; each must be above 0")
    if train.batch_size == 1:
        raise ConfigError("train.batch_size: 1 has no negatives, so nothing would be learned")
    if train.batch_size == train.accumulate:
        raise ConfigError(
            f"train.accumulate: {train.accumulate} makes parts of one pair, which have no "
            "negatives; use less, or train.micro_batch, which keeps those of the batch"
        )
    if train.micro_batch is not None and train.accumulate != 1:
        raise ConfigError(
            f"train.micro_batch: {train.micro_batch} with train.accumulate {train.accumulate}; "
            "the one keeps all negatives of the batch, the other those of each part: leave one out"
        )
    if train.distributed == "fsdp" and train.precision == "fp16":
        raise ConfigError("train.precision: fp16 does not go with train.distributed=fsdp; use bf16")
    if train.offload and train.distributed != "fsdp":
        raise ConfigError("train.offload: it goes with train.distributed=fsdp; ddp keeps all whole")
    if train.checkpoint == "sharded" and train.distributed != "fsdp":
        raise ConfigError(
            "train.checkpoint: sharded goes with train.distributed=fsdp, where each rank holds a "
            "part; use whole"
        )
    if config.loss.kind == "sigmoid" and config.loss.label_smoothing:
        raise ConfigError(
            f"loss.label_smoothing: {config.loss.label_smoothing} is for loss.kind=infonce; a "
            "sigmoid loss has no distribution to smooth"
        )
    if config.loss.init_bias != Config().loss.init_bias and config.loss.kind != "sigmoid":
        raise ConfigError(
            f"loss.init_bias: {config.loss.init_bias} is for loss.kind=sigmoid; a softmax takes no "
            "notice of a bias"
        )
    if model.pretrained is None and 1 / config.loss.init_temperature > config.loss.max_scale:
        raise ConfigError(
            f"loss.init_temperature: {config.loss.init_temperature} is a scale of "
            f"{1 / config.loss.init_temperature:.4g}, above loss.max_scale {config.loss.max_scale}"
        )
    if config.loss.label_smoothing >= 1:
        raise ConfigError(f"loss.label_smoothing: {config.loss.label_smoothing}; a share, below 1")
    _check_training(config)
    for name in config.eval.splits or []:
        if name not in splits:
            raise ConfigError(
                f"eval.splits: {name} is not in data.evaluate.{_suggest(name, splits)}"
            )


def _check_training(config: Config) -> None:
    optim, train = config.optim, config.train
    if train.activation_checkpointing > 1:
        raise ConfigError(
            f"train.activation_checkpointing: {train.activation_checkpointing}; a share, at most 1"
        )
    if optim.min_lr > optim.lr:
        raise ConfigError(f"optim.min_lr: {optim.min_lr} is above optim.lr")
    if optim.muon_lr is not None and optim.name != "muon":
        raise ConfigError(
            f"optim.muon_lr: {optim.muon_lr} with optim.name={optim.name}; set optim.name=muon, or "
            "leave it out"
        )
    if optim.cooldown is not None and optim.schedule == "cosine":
        raise ConfigError(
            f"optim.cooldown: {optim.cooldown}, but a cosine falls all the way; set optim.schedule "
            "to wsd or constant, or leave it out"
        )
    if optim.min_lr and optim.schedule == "constant" and optim.cooldown == 0:
        raise ConfigError(
            f"optim.min_lr: {optim.min_lr}, but with optim.schedule=constant and optim.cooldown=0 "
            "the rate never falls; leave it out"
        )
    if optim.cooldown is not None and optim.cooldown > 1:
        raise ConfigError(f"optim.cooldown: {optim.cooldown}; a share of the steps, at most 1")
    if optim.layer_decay > 1:
        raise ConfigError(
            f"optim.layer_decay: {optim.layer_decay} would have the first layers learn fastest; "
            "a factor from one layer to the one before it, at most 1"
        )
    scale = {"vision": optim.vision_lr_scale, "text": optim.text_lr_scale, "none": 1.0}
    if scale[frozen := config.model.freeze] != 1:
        raise ConfigError(
            f"optim.{frozen}_lr_scale: {scale[frozen]}, but model.freeze={frozen} keeps that tower "
            "as it is; leave one out"
        )
    shares = sum(stage.share for stage in train.stages)
    if train.stages and not math.isclose(shares, 1, abs_tol=1e-6):
        raise ConfigError(
            f"train.stages: the shares {[stage.share for stage in train.stages]} make "
            f"{shares:g}; they must make 1"
        )
    for number, stage in enumerate(train.stages):
        if stage.patch_dropout is not None and stage.patch_dropout >= 1:
            raise ConfigError(
                f"train.stages.{number}.patch_dropout: {stage.patch_dropout}; a share, below 1"
            )
    if train.ema is not None and train.ema >= 1:
        raise ConfigError(f"train.ema: {train.ema}; a decay, below 1, e.g. 0.9999")


_MAY_BE_NEGATIVE = {"loss.init_bias"}
# All other numbers must be above 0.
_MAY_BE_ZERO = {
    "seed",
    "data.workers",
    "data.cache_gb",
    "data.decoded_gb",
    "data.hard_negatives",
    "data.holdout",
    "data.max_loss_share",
    "data.max_skip_share",
    "data.augment.horizontal_flip",
    "eval.every",
    "loss.label_smoothing",
    "optim.cooldown",
    "optim.min_lr",
    "optim.weight_decay",
    "optim.warmup_steps",
    "model.vision.dropout",
    "model.vision.patch_dropout",
    "model.text.dropout",
    "train.activation_checkpointing",
    "train.stages.patch_dropout",
}


def _check_values(tree: dict[str, Any], prefix: str = "") -> None:
    for name, value in tree.items():
        key = f"{prefix}{name}"
        if isinstance(value, dict):
            _check_values(value, f"{key}.")
        elif isinstance(value, list):
            parts = {str(n): each for n, each in enumerate(value) if isinstance(each, dict)}
            _check_values(parts, f"{key}.")
            if not all(math.isfinite(each) for each in value if isinstance(each, int | float)):
                raise ConfigError(f"{key}: {value}; each must be a finite number")
        elif isinstance(value, bool) or key.endswith(".filter.min_score"):
            continue
        elif isinstance(value, str):
            # Of a source without a path, what is said depends on the others.
            if not value.strip() and not key.endswith(".path"):
                raise ConfigError(f"{key}: it is empty; give a value or leave the key out")
        elif isinstance(value, int | float):
            if key in _MAY_BE_NEGATIVE and math.isfinite(value):
                continue
            zero = re.sub(r"\.\d+\.", ".", key) in _MAY_BE_ZERO
            if not math.isfinite(value) or value < 0 or (value == 0 and not zero):
                raise ConfigError(
                    f"{key}: {value}; it must be {'0 or more' if zero else 'above 0'}"
                )
            if isinstance(value, int) and value >= 2**63:
                raise ConfigError(f"{key}: {value}; it must be below 2**63")


def _set(tree: dict[str, Any], dotted: str, value: Any) -> None:
    *parents, last = dotted.split(".")
    for depth, name in enumerate(parents):
        node = tree.get(name)
        if isinstance(node, str) and _is_source(parents[: depth + 1]):
            node = {"path": node}
        if node is None:
            node = {}
        if not isinstance(node, dict):
            raise ConfigError(f"{dotted}: {'.'.join(parents[: depth + 1])} has no keys below it")
        tree[name] = tree = node
    if isinstance(value, str) and _is_source([*parents, last]) and isinstance(tree.get(last), dict):
        tree = tree[last]
        last = "path"
    tree[last] = value


def _is_source(parts: Sequence[str]) -> bool:
    return list(parts) == ["data", "train"] or (
        len(parts) == 3 and parts[0] == "data" and parts[1] in ("evaluate", "mix")
    )


def _expand_sources(tree: dict[str, Any]) -> dict[str, Any]:
    """``train: data/*.tar`` is short for ``train: {path: data/*.tar}``."""
    data = tree.get("data")
    if not isinstance(data, dict):
        return tree
    data = dict(data)
    if data.get("train") is not None:
        data["train"] = _whole_source(data["train"], "data.train")
    for key in ("evaluate", "mix"):
        if isinstance(data.get(key), dict):
            data[key] = {
                str(name): _whole_source(value, f"data.{key}.{name}")
                for name, value in data[key].items()
            }
    return {**tree, "data": data}


def _whole_source(value: Any, key: str) -> Any:
    """The tree of a source that may be written as its path; its templates may be one text, or the
    name of a set.

    Raises:
        ConfigError: it is a list, or there is no such set.
    """
    if isinstance(value, str):
        return {"path": value}
    if isinstance(value, list):
        raise ConfigError(
            f"{key}: a list, and one path is wanted; name several files by a glob or braces, such "
            "as shards/{000..127}.tar, and several sources under data.mix"
        )
    if isinstance(value, dict) and isinstance(value.get("templates"), str):
        where = f"{key}.templates"
        return {**value, "templates": resolve_templates(value["templates"], where=where)}
    return value


def _expand_stages(tree: dict[str, Any]) -> dict[str, Any]:
    """Types each stage of a run by itself; of one in a list, jsonargparse says less plainly what
    is wrong."""
    train = tree.get("train")
    if not isinstance(train, dict) or not isinstance(train.get("stages"), list):
        return tree
    stages = []
    for number, stage in enumerate(train["stages"]):
        key = f"train.stages.{number}"
        _check_keys(stage, StageConfig, prefix=f"{key}.")
        try:
            stages.append(dataclasses.asdict(_typed(StageConfig, stage, key)))
        except ConfigError as error:
            raise ConfigError(f"{key}.{error}") from None
    return {**tree, "train": {**train, "stages": stages}}


def _check_keys(tree: Any, schema: Any, *, prefix: str, whole: Any = Config) -> None:
    """Refuses keys that ``schema`` has not; the nearest of it, or of the whole, is named."""
    if not isinstance(tree, dict):
        raise ConfigError(
            f"{prefix.rstrip('.') or 'config'}: a mapping of keys is wanted, got {tree!r}"
        )
    hints = typing.get_type_hints(schema)
    for key, value in tree.items():
        if key not in hints:
            siblings = [f"{prefix}{name}" for name in hints]
            near = _suggest(f"{prefix}{key}", siblings) or _suggest(
                f"{prefix}{key}", list(_all_keys(whole))
            )
            raise ConfigError(f"{prefix}{key}: no such key.{near}")
        if value is None and not _optional(hints[key]):
            raise ConfigError(f"{prefix}{key}: it has no value; give one or leave the key out")
        kind = hints[key]
        if dataclasses.is_dataclass(kind):
            _check_keys(value, kind, prefix=f"{prefix}{key}.", whole=whole)
        elif typing.get_origin(kind) is dict and isinstance(value, dict):
            for name, source in value.items():
                inner = typing.get_args(kind)[1]
                _check_keys(source, inner, prefix=f"{prefix}{key}.{name}.", whole=whole)


def _all_keys(schema: Any, prefix: str = "") -> typing.Iterator[str]:
    for name, kind in typing.get_type_hints(schema).items():
        yield f"{prefix}{name}"
        if dataclasses.is_dataclass(kind):
            yield from _all_keys(kind, f"{prefix}{name}.")


def _suggest(wrong: str, known: list[str]) -> str:
    """`` Did you mean x?``: by the last part of the dotted name, or by the whole of it."""
    last = wrong.rsplit(".", 1)[-1]
    by_last = {name.rsplit(".", 1)[-1]: name for name in reversed(known)}
    near = [by_last[n] for n in difflib.get_close_matches(last, list(by_last), n=1)]
    near = near or difflib.get_close_matches(wrong, known, n=1, cutoff=0.75)
    return f" Did you mean {near[0]}?" if near else ""


def _optional(kind: Any) -> bool:
    return type(None) in typing.get_args(kind)


def _plain(message: str, where: str) -> str:
    """jsonargparse's two or three lines as one of ours."""
    key = r'Parser key "(?P<key>[^"]+)":'
    found = re.search(
        key + r".*Subtypes: \[(?P<what>.*?)\]\s*Errors:.*Given value: (?P<got>.*)", message, re.S
    ) or re.search(key + r"\s*(?P<what>.*?)\.? Got value: (?P<got>.*)", message, re.S)
    if not found:
        return f"{where}: {' '.join(message.split())}"
    what = re.sub(r"<class '([^']+)'>", r"\1", " ".join(found["what"].split()))
    what = what.replace("typing.", "").replace("Expected a ", "expected ")
    if what.endswith(", NoneType"):
        what = f"expected {what.replace(', NoneType', '').replace(', ', ' or ')} or null"
    got = " ".join(found["got"].split())
    return f"{found['key']}: {what}, got {got[:80]}"
