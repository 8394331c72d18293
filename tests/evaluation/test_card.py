"""The model card: what was measured of these weights, and a licence where one is given."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import yaml
from tiny_model import save_tiny_model

from clipkit.config import Config
from clipkit.digest import weights_sha256
from clipkit.evaluation.card import update_card, with_licence, with_section
from clipkit.evaluation.results import TaskResult, write_results
from clipkit.evaluation.statistics import bootstrap_interval
from clipkit.training.card import model_card


def card_of_a_run() -> str:
    config = Config(output="runs/mine")
    config.data.train.path = "photos/"
    metrics = {"num_texts": 40, "num_images": 20}
    for way in ("text_to_image", "image_to_text"):
        metrics |= {f"{way}_R@1": 0.75, f"{way}_R@5": float("nan")}
    return model_card(config, "1,000", 50, {"held|out": metrics}, parameters=5_000_000)


def head(card: str) -> dict[str, object]:
    parsed: dict[str, object] = yaml.safe_load(card.split("---\n")[1])
    return parsed


def test_a_card_tells_data_recipe_metrics_limits_and_licence() -> None:
    card = card_of_a_run()
    low, high = bootstrap_interval(np.array([1.0] * 30 + [0.0] * 10))
    assert f"| held\\|out | text → image | 0.750 ({low:.3f}–{high:.3f}) | – " in card
    for heading in ("Data", "Recipe", "Retrieval", "Limits", "Licence", "Use"):
        assert card.count(f"\n## {heading}\n") == 1
    assert "`photos/`, 1,000 samples" in card
    assert "5.00 M parameters" in card
    assert "license" not in head(card)
    assert "`clipkit export … --license NAME`" in card


def test_a_licence_is_in_the_head_once_it_is_given() -> None:
    card = with_licence(card_of_a_run(), "apache-2.0")
    assert head(card)["license"] == "apache-2.0"
    assert head(card)["library_name"] == "transformers"
    assert "None was stated" not in card
    assert with_licence(card, None) == card
    assert head(with_licence(card, "mit"))["license"] == "mit"
    assert head(with_licence("# Mine\n", "mit")) == {"license": "mit"}


def test_a_section_takes_the_place_of_the_one_of_its_name() -> None:
    card = "# a\n\n## One\n\n```\n## Two\n```\n\n## Two\n\nold\n\n## Three\n\nlast\n"
    changed = with_section(card, "Two", "new")
    assert changed == card.replace("old", "new")
    more = with_section(changed, "Four", "x", before="Three")
    assert more.index("## Two") < more.index("## Four") < more.index("## Three")
    assert with_section("", "Two", "new").strip() == "## Two\n\nnew"


def test_the_card_of_a_model_has_the_results_of_its_own_weights(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "run/model")
    (tmp_path / "run/config.yaml").write_text("seed: 0\n")
    (folder / "README.md").write_text(card_of_a_run())
    task = TaskResult("pets", "zero_shot", {"top1": 0.5}, intervals={"top1": (0.4, 0.6)})
    for name, sha256 in (("mine", weights_sha256(folder)), ("others", "0" * 64)):
        about = {"model": {"path": str(folder), "sha256": sha256}}
        place = tmp_path / "run/eval" / name
        write_results(place, [task], about, table=tmp_path / "run/eval/results.csv")
    for _ in range(2):  # the second time changes nothing
        update_card(folder)
        card = (folder / "README.md").read_text()
        assert card.count("## Results of suites") == 1
        assert "| mine | pets | top-1 | 0.500 | 0.400–0.600 |" in card
        assert "others" not in card
