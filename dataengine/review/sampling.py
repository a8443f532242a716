"""A sample of prompts to judge, which stands for all of them."""

from __future__ import annotations

import random
from collections.abc import Hashable, Sequence


def stratified(strata: Sequence[Hashable], count: int, seed: int) -> list[int]:
    """Positions of a sample that has of each stratum its share, so that rates in the sample are those of the whole.

    Shares are rounded by largest remainders, and no stratum is left out while there is room for one of each. The same
    input gives the same sample, so that two people can judge the same one.

    Args:
        strata: of each prompt, what it is counted under, such as its concept and verdict.
        count: how many to choose; all where there are no more.
        seed: another one gives another sample.

    Returns:
        Positions, sorted.
    """
    by_stratum: dict[Hashable, list[int]] = {}
    for position, stratum in enumerate(strata):
        by_stratum.setdefault(stratum, []).append(position)
    if count >= len(strata):
        return list(range(len(strata)))
    shares = {stratum: count * len(those) / len(strata) for stratum, those in by_stratum.items()}
    least = 1 if count >= len(by_stratum) else 0
    sizes = {stratum: max(int(share), least) for stratum, share in shares.items()}
    while sum(sizes.values()) < count:  # to whom the most is missing
        neediest = max(sizes, key=lambda stratum: shares[stratum] - sizes[stratum])
        sizes[neediest] += 1
    while sum(sizes.values()) > count:  # the ones that were given one each have made it too many
        richest = max((s for s in sizes if sizes[s] > least), key=lambda stratum: sizes[stratum] - shares[stratum])
        sizes[richest] -= 1
    chance = random.Random(seed)
    return sorted(
        position for stratum, those in by_stratum.items() for position in chance.sample(those, sizes[stratum])
    )
