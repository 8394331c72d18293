from __future__ import annotations

import itertools

import pytest

from clipkit.config.schema import OptimConfig
from clipkit.training.schedule import learning_rate


def rates(total: int, **options: object) -> list[float]:
    config = OptimConfig(lr=1.0, **options)  # type: ignore[arg-type]
    return [learning_rate(step, total, config) for step in range(total + 1)]


def test_learning_rate_warms_up_linearly_and_ends_at_min_lr() -> None:
    cosine = rates(104, min_lr=0.1, warmup_steps=4)
    assert cosine[:4] == [0.25, 0.5, 0.75, 1.0]
    assert cosine[4] == 1.0
    assert cosine[54] == pytest.approx(0.55)  # half way down the cosine
    assert cosine[104] == pytest.approx(0.1)
    assert all(a >= b for a, b in itertools.pairwise(cosine[4:]))


def test_a_run_shorter_than_its_warm_up_still_warms_up() -> None:
    assert rates(2, warmup_steps=100)[:2] == [0.5, 1.0]


@pytest.mark.parametrize(("schedule", "half_way"), [("wsd", 1 - 0.5**0.5), ("constant", 0.5)])
def test_the_rate_is_held_and_falls_in_the_last_fifth(schedule: str, half_way: float) -> None:
    found = rates(100, min_lr=0.1, warmup_steps=4, schedule=schedule)
    assert found[:4] == [0.25, 0.5, 0.75, 1.0]
    assert set(found[4:81]) == {1.0}
    assert found[90] == pytest.approx(0.1 + 0.9 * half_way)
    assert found[100] == pytest.approx(0.1)
    assert all(a > b for a, b in itertools.pairwise(found[80:]))


def test_until_the_cooldown_a_longer_run_has_the_same_rates() -> None:
    short = rates(100, warmup_steps=10, schedule="wsd", cooldown=0.5)
    long = rates(300, warmup_steps=10, schedule="wsd", cooldown=0.5)
    assert short[:51] == long[:51]
    assert short[51] < long[51]


def test_no_cooldown_holds_the_rate_to_the_end() -> None:
    assert set(rates(50, warmup_steps=1, schedule="constant", cooldown=0.0)[:50]) == {1.0}


def test_a_cooldown_of_the_whole_run_begins_after_the_warm_up() -> None:
    found = rates(50, warmup_steps=10, schedule="constant", cooldown=1.0)
    assert found[9] == found[10] == 1.0
    assert found[30] == pytest.approx(0.5)
