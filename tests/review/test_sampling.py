"""Samples of prompts that stand for all of them."""

from __future__ import annotations

import math
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping

import pytest

from dataengine.review.sampling import stratified


def strata(sizes: Mapping[str, int], seed: int = 0) -> list[str]:
    """So many of each, shuffled."""
    names = [name for name, count in sizes.items() for _ in range(count)]
    random.Random(seed).shuffle(names)
    return names


def chosen(names: list[str], count: int, seed: int = 0) -> dict[str, int]:
    """How many of each stratum are in the sample."""
    return dict(Counter(names[position] for position in stratified(names, count, seed)))


@pytest.mark.parametrize(
    ("sizes", "count", "wanted"),
    [
        ({"a": 70, "b": 20, "c": 10}, 10, {"a": 7, "b": 2, "c": 1}),
        ({"a": 55, "b": 28, "c": 17}, 10, {"a": 5, "b": 3, "c": 2}),  # shares of 5.5, 2.8 and 1.7
        ({"a": 97, "b": 2, "c": 1}, 10, {"a": 8, "b": 1, "c": 1}),  # shares of 9.7, 0.2 and 0.1
        ({"a": 59, "b": 39, "c": 2}, 10, {"a": 6, "b": 3, "c": 1}),  # shares of 5.9, 3.9 and 0.2
        ({"a": 60, "b": 36, "c": 1, "d": 1, "e": 1, "f": 1}, 10, {"a": 4, "b": 2, "c": 1, "d": 1, "e": 1, "f": 1}),
        ({"a": 98, "b": 1, "c": 1}, 3, {"a": 1, "b": 1, "c": 1}),
        ({"a": 50, "b": 30, "c": 20}, 2, {"a": 1, "b": 1}),  # no room for each: shares of 1, 0.6 and 0.4
        ({"a": 80, "b": 10, "c": 10}, 1, {"a": 1}),
        ({"a": 5}, 3, {"a": 3}),
        ({"a": 5, "b": 5}, 9, {"a": 5, "b": 4}),
        ({"a": 5, "b": 5}, 0, {}),
    ],
)
def test_each_stratum_has_its_share_and_none_is_left_out_while_there_is_room(
    sizes: dict[str, int], count: int, wanted: dict[str, int]
) -> None:
    names = [name for name, size in sizes.items() for _ in range(size)]
    assert chosen(names, count) == wanted


@pytest.mark.parametrize("count", [6, 7, 1000])
def test_all_are_chosen_where_there_are_no_more(count: int) -> None:
    assert stratified(strata({"a": 4, "b": 2}), count, 0) == [0, 1, 2, 3, 4, 5]
    assert stratified([], count, 0) == []


@pytest.mark.parametrize("seed", range(150))
def test_any_sample_is_of_the_asked_size_and_even(seed: int) -> None:
    """Strata of random sizes, many of them of one prompt."""
    chance = random.Random(seed)
    sizes = {f"s{n}": chance.choice([1, 1, 2, 5, 30, 200]) for n in range(chance.randint(1, 12))}
    names = strata(sizes, seed)
    count = chance.randint(0, len(names))
    positions = stratified(names, count, seed)
    assert positions == sorted(set(positions))
    assert set(positions) <= set(range(len(names)))
    assert len(positions) == count
    taken = Counter(names[position] for position in positions)
    shares = {name: count * size / len(names) for name, size in sizes.items()}
    for name, size in sizes.items():
        assert taken[name] <= min(size, max(1, math.ceil(shares[name])))
        assert taken[name] >= (1 if count >= len(sizes) else math.floor(shares[name]))
    if min(shares.values()) >= 1:
        assert_by_largest_remainders(taken, shares)


def assert_by_largest_remainders(taken: Mapping[str, int], shares: Mapping[str, float]) -> None:
    """Each has its share rounded down or up, and no remainder that was rounded down is above one rounded up."""
    more = {name: taken[name] - math.floor(share) for name, share in shares.items()}
    remainders = {name: share % 1 for name, share in shares.items()}
    assert set(more.values()) <= {0, 1}
    least_up = min((remainders[name] for name in more if more[name]), default=1.0)
    most_down = max((remainders[name] for name in more if not more[name]), default=0.0)
    assert most_down <= least_up + 1e-9


def test_two_people_can_judge_the_same_sample() -> None:
    """The order in which Python hashes texts does not matter."""
    code = "from dataengine.review.sampling import stratified as s; print(s([*'abcdefgh'] * 30, 20, 7))"
    told = [
        subprocess.run(
            [sys.executable, "-c", code], env=os.environ | {"PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("1", "2")
    ]
    assert told[0].decode().strip() == told[1].decode().strip() == str(stratified([*"abcdefgh"] * 30, 20, 7))


def test_another_seed_gives_another_sample() -> None:
    names = strata({"a": 50, "b": 50})
    samples = {tuple(stratified(names, 10, seed)) for seed in range(20)}
    assert len(samples) == 20


def test_within_a_stratum_every_prompt_has_the_same_chance() -> None:
    """2 of 10 in 500 samples: each is in about 100, with a standard deviation of 9."""
    names = strata({"a": 10, "b": 10})
    times = Counter(position for seed in range(500) for position in stratified(names, 4, seed))
    assert len(times) == 20
    assert all(60 <= count <= 140 for count in times.values())


def test_a_stratum_is_whatever_can_be_counted_by() -> None:
    keys = [("entities", False, True)] * 6 + [("entities", True, True)] * 3
    assert Counter(keys[position] for position in stratified(keys, 3, 0)) == {keys[0]: 2, keys[-1]: 1}
