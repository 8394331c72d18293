from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from clipkit.config import (
    SourceConfig,
    StageConfig,
    config_from_dict,
    config_to_dict,
    dump_config,
    load_config,
)
from clipkit.errors import ConfigError

MINIMAL = "data: {train: pairs.csv}\ntrain: {steps: 10}\n"


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(MINIMAL)
    return path


def test_defaults_yield_to_the_file_and_the_file_to_overrides(config_file: Path) -> None:
    config_file.write_text(MINIMAL + "optim: {lr: 2e-3, weight_decay: 0.3}\n")
    config = load_config(config_file, ["optim.lr=5e-4"])
    assert config.optim.lr == 5e-4
    assert config.optim.weight_decay == 0.3
    assert config.optim.eps == 1e-6


def test_a_number_written_1e_3_is_a_float(config_file: Path) -> None:
    # YAML 1.1 reads 1e-3 as text.
    config_file.write_text(MINIMAL + "optim: {lr: 1e-3}\n")
    assert load_config(config_file).optim.lr == 0.001


def test_a_source_may_be_written_as_its_path(config_file: Path) -> None:
    config = load_config(config_file, ["data.evaluate.dev=dev.csv", "data.train.caption=title"])
    assert config.data.train == SourceConfig(path="pairs.csv", caption="title")
    assert config.data.evaluate == {"dev": SourceConfig(path="dev.csv")}


def test_the_resolved_config_is_read_back_as_it_was(config_file: Path) -> None:
    stages = "train.stages=[{share: 0.8, image_size: 112, patch_dropout: 0}, {share: 0.2}]"
    config = load_config(
        config_file, ["model.vision.width=256", "preprocess.mean=[0.1,0.2,0.3]", stages]
    )
    assert config.train.stages[0] == StageConfig(share=0.8, image_size=112, patch_dropout=0.0)
    assert config_from_dict(yaml.safe_load(dump_config(config))) == config
    assert config_from_dict(config_to_dict(config)) == config


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("output=.", "output: '.' does not name a folder of its own"),
        ("output=/", "output: '/' does not name a folder of its own"),
        ("optim.lrr=1", "optim.lrr: no such key. Did you mean optim.lr?"),
        ("lr=1", "lr: no such key. Did you mean optim.lr?"),
        ("optm.lr=1", "optm: no such key. Did you mean optim?"),
        ("data.evaluate.dev.pth=x", "data.evaluate.dev.pth: no such key. Did you mean"),
        ("optim.lr=fast", "optim.lr: expected float, got fast"),
        ("train.batch_size=2.5", "train.batch_size: expected int, got 2.5"),
        ("train.precision=bf17", "train.precision: expected Literal"),
        ("preprocess.mean=[1,2]", "preprocess.mean: expected tuple with 3 elements"),
        ("seed=null", "seed: it has no value"),
        ("data=3", "data: a mapping of keys is wanted"),
        ("train.batch_size=0", "train.batch_size: 0; it must be above 0"),
        ("optim.lr=.nan", "optim.lr: nan; it must be above 0"),
        ("data.workers=-1", "data.workers: -1; it must be 0 or more"),
        ("train.epochs=3", "train.epochs, train.steps: both are set"),
        ("train.steps=null", "train.epochs, train.steps: neither is set"),
        ("preprocess.image_size=100", "is not a multiple of model.vision.patch_size 32; use 96"),
        ("model.text.heads=7", "model.text.heads: width 512 does not divide by 7"),
        ("data.augment.crop_scale=[0.9,0.5]", "data.augment.crop_scale"),
        ("optim.min_lr=1", "optim.min_lr: 1.0 is above optim.lr"),
        ("optim.muon_lr=0.01", "optim.muon_lr: 0.01 with optim.name=adamw; set optim.name=muon"),
        ("optim.cooldown=0.1", "optim.cooldown: 0.1, but a cosine falls all the way"),
        ("optim={schedule: wsd, cooldown: 1.5}", "optim.cooldown: 1.5; a share of the steps"),
        ("optim.layer_decay=1.5", "optim.layer_decay: 1.5 would have the first layers learn"),
        ("optim.text_lr_scale=0", "optim.text_lr_scale: 0.0; it must be above 0"),
        ("train.ema=1", "train.ema: 1.0; a decay, below 1"),
        ("train.stages=[{share: 0.5}]", "train.stages: the shares [0.5] make 0.5; they must"),
        ("train.stages=[{shares: 1}]", "train.stages.0.shares: no such key. Did you mean"),
        (
            "train.stages=[{image_size: big}]",
            "train.stages.0.image_size: expected int or null, got big",
        ),
        ("loss.init_bias=-3", "loss.init_bias: -3.0 is for loss.kind=sigmoid"),
        ("loss.init_temperature=0.005", "is a scale of 200, above loss.max_scale 100.0"),
        ("train.micro_batch=big", "train.micro_batch: expected int or null, got big"),
        ("eval.splits=[[1]]", "eval.splits: expected list[str] or null, got [[1]]"),
        ("train.stages=[half]", "train.stages.0: a mapping of keys is wanted, got 'half'"),
        ("train.stages=half", "train.stages: "),
        ("train.stages=[{share: 0}, {}]", "train.stages.0.share: 0.0; it must be above 0"),
        ("train.stages=[{patch_dropout: 1}]", "train.stages.0.patch_dropout: 1.0; a share"),
        ("optim.betas=[0.9,1.5]", "optim.betas: [0.9, 1.5]; each from 0 to below 1"),
        ("preprocess.std=[0,1,1]", "preprocess.std: [0.0, 1.0, 1.0]; each must be above 0"),
        ("seed=99999999999999999999999999", "it must be below 2**63"),
        ("data.shuffle_chunk=99999999999999999999", "data.shuffle_chunk: 99999999999999999999; it"),
        ("preprocess.mean=[.inf,0,0]", "preprocess.mean: [inf, 0.0, 0.0]; each must be a finite"),
        ("preprocess.std=[1,1,.inf]", "preprocess.std: [1.0, 1.0, inf]; each must be a finite"),
        ("train.accumulate=256", "train.accumulate: 256 makes parts of one pair"),
        ("train.batch_size=1", "train.batch_size: 1 has no negatives"),
        ("data.holdout=1", "data.holdout: 1.0; a share of the samples, below 1"),
        ("eval.splits=[dev]", "eval.splits: dev is not in data.evaluate"),
        ("optim.lr", "optim.lr: not an override; write key=value"),
        ("optim.lr=[", "optim.lr, line 1"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_key(
    config_file: Path, override: str, message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(config_file, [override])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_frozen_tower_has_no_rate_of_its_own(config_file: Path) -> None:
    with pytest.raises(ConfigError, match=r"vision_lr_scale: 0\.1, but model\.freeze=vision"):
        load_config(config_file, ["model.freeze=vision", "optim.vision_lr_scale=0.1"])
    load_config(config_file, ["model.freeze=vision", "optim.text_lr_scale=0.1"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optim: {lr: 1}\noptim: {lr: 2}\n", "the key optim stands here twice"),
        ("optim:\n  lr: 1\n  lr: 2\n", "line 3: the key lr stands here twice"),
        ("output: !!python/object/apply:os.system ['touch owned']\n", "python/object"),
        ("- a\n- b\n", "a config is a mapping of keys"),
        ("a: b: c\n", "line 1"),
    ],
)
def test_a_bad_file_is_refused_by_name(
    config_file: Path, text: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(config_file.parent)
    config_file.write_text(text)
    with pytest.raises(ConfigError, match=r"run\.yaml") as caught:
        load_config(config_file)
    assert message in str(caught.value)
    assert not (config_file.parent / "owned").exists()


def test_a_missing_config_file_names_those_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "mine.yaml").write_text(MINIMAL)
    with pytest.raises(ConfigError, match=r"no such config file; there are configs.mine\.yaml"):
        load_config("configs/mien.yaml")


def test_shipped_configs_are_valid(root: Path) -> None:
    configs = sorted((root / "configs").glob("[!s]*.yaml"))  # suites are none
    assert configs
    for path in configs:
        overrides = []
        if "FOLDER" in path.read_text():
            overrides = ["data.train=pairs.csv"]
        load_config(path, overrides)
        assert f"configs/{path.name}" in path.read_text().splitlines()[0], path


@pytest.mark.parametrize(
    ("override", "wanted"),
    [
        ("data.train=2019", ("train", "path", "2019")),
        ("data.train.path=007", ("train", "path", "007")),
        ("data.train=yes", ("train", "path", "yes")),
        ("data.train=*.tar", ("train", "path", "*.tar")),
        ("data.train=[ab]*.tar", ("train", "path", "[ab]*.tar")),
        ("data.train=shards/{a,b}.tar", ("train", "path", "shards/{a,b}.tar")),
        ("data.train={path: 2019, caption: 2}", ("train", "caption", "2")),
        ("data.train.caption='no'", ("train", "caption", "no")),
        ("data.train.caption=null", ("train", "caption", None)),
        ("data.train.caption=[title, text]", ("train", "caption", "title,text")),
        ("data.train.class_names=123", ("train", "class_names", "123")),
        ("data.train.image_root=12:30", ("train", "image_root", "12:30")),
        ("data.train.templates=a photo of a {}", ("train", "templates", ["a photo of a {}"])),
        (
            "data.train.templates=[it's a {}, 'b, {}']",
            ("train", "templates", ["it's a {}", "b, {}"]),
        ),
        ("data.train.templates=none", ("train", "templates", ["{}"])),
    ],
)
def test_a_text_is_taken_as_it_is_written(
    config_file: Path, override: str, wanted: tuple[str, str, object]
) -> None:
    source, name, value = wanted
    config = load_config(config_file, [override])
    assert getattr(getattr(config.data, source), name) == value


def test_names_that_yaml_takes_for_numbers_and_dates_are_texts(config_file: Path) -> None:
    config_file.write_text(
        "data:\n  train: {path: 2019, class_names: 0123, templates: photo}\n"
        "  evaluate: {2020: 2021, no: dev.csv}\n"
        "train: {steps: 10}\noutput: 2024-01-01\n"
    )
    config = load_config(config_file)
    assert (config.data.train.path, config.data.train.class_names) == ("2019", "0123")
    assert len(config.data.train.templates) == 7
    assert {name: s.path for name, s in config.data.evaluate.items()} == {
        "2020": "2021",
        "no": "dev.csv",
    }
    assert config.output == "2024-01-01"
    for text in ("2024", "007", "2024-13-45", "1e3", "off"):
        assert load_config(config_file, [f"output={text}"]).output == text


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.train.caption=no", "no is false in YAML; write none for a source that has none"),
        ("data.train.image=on", "data.train.image: on is true in YAML; write a column's name"),
        ("data.train=null", "data.train: it has no value"),
        ("data.train=[a.tar, b.tar]", "data.train: a list, and one path is wanted; name several"),
        ("data.train.templates=foto", "data.train.templates: 'foto' has no {} where the label"),
    ],
)
def test_what_may_mean_two_things_is_refused_with_what_to_write(
    config_file: Path, override: str, message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(config_file, [override])
    assert message in str(caught.value)


def test_braces_without_quotes_in_a_file_say_so(config_file: Path) -> None:
    config_file.write_text("data: {train: {path: x, templates: [a photo of a {}]}}\n")
    with pytest.raises(ConfigError, match=r"line 1: .*; put texts that hold \{\} in quotes"):
        load_config(config_file)
