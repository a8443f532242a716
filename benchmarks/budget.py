"""Budgets, and what `--dry_run` says beforehand, against what a stand-in for the model charged.

    python -m benchmarks.budget
    python -m benchmarks.budget --budgets 4 --images 2

The stand-in's answers cost tokens that differ from question to question; what it charged is its own count, by the
model's list price. One answer in twenty is broken JSON, so that re-asks are in it; answers that never come are not
charged. Photos are small (0.3 megapixels). Claimed:

- in each of 20 runs with a random budget, of 2 % to 110 % of what the whole run costs, in dollars or in tokens, the
  stand-in never charged more than the budget; run again with the same budget, it still has not;
- a run that its budget stops says so and exits with 1, one that does all exits with 0;
- what the engine has written down as paid is what was charged, in calls, in tokens and in dollars;
- `--dry_run` is within 25 % of what the run then costs: in an empty folder, where it goes by its defaults, and after
  the first few images, where it goes by those. The stand-in's tokens are no model's, so of the first it is the number
  of calls that is claimed, and the cost only printed.

Nothing published stands against it: the published engine has no budget. The ratio is of spend to budget.
"""

from __future__ import annotations

import argparse
import random
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.rig import Claims, make_photos, run_child, run_flags, run_to_the_end
from benchmarks.standin import StandIn, Stats, standing_in
from benchmarks.trees import journaled

SIZE = (640, 480)
BROKEN = 0.05
NEAR = 0.25


@dataclass(frozen=True)
class Charged:
    """What the stand-in charged for in some runs."""

    calls: int
    tokens: int
    usd: float


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--budgets", type=int, default=20, help="default: %(default)s")
    parser.add_argument("--images", type=int, default=6, help="default: %(default)s")
    parser.add_argument("--forecast_images", type=int, default=30, help="of --dry_run; default: %(default)s")
    parser.add_argument("--seconds", type=float, default=0.1, help="of an answer; default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of the budgets; default: %(default)s")
    options = parser.parse_args(arguments)
    claims = Claims()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        plan: dict[str, Any] = {"seconds": options.seconds, "broken_json": BROKEN, "seed": options.seed}
        with standing_in(**plan) as model:
            budgets(root, model, options, claims)
        with standing_in(**plan) as model:
            forecasts(root, model, options, claims)
    return claims.code


def spent(model: StandIn, since: Stats) -> Charged:
    """What was charged since."""
    now = model.stats()
    tokens = now.input_tokens + now.output_tokens - since.input_tokens - since.output_tokens
    return Charged(now.paid - since.paid, tokens, now.usd - since.usd)


def budgets(root: Path, model: StandIn, options: argparse.Namespace, claims: Claims) -> None:
    """Runs with random budgets."""
    photos = make_photos(root / "photos", options.images, SIZE)
    whole = unbounded(photos, root / "whole", model, claims)
    drawn = random.Random(options.seed)
    ratios, wrong = [], 0
    for number in range(options.budgets):
        part = drawn.uniform(0.02, 1.1)
        dollars, tokens = (
            ("--budget_usd", f"{part * whole.usd:.6f}"),
            ("--budget_tokens", str(int(part * whole.tokens))),
        )
        ratio, fine = bounded(photos, root / f"bounded_{number}", model, dollars if number % 2 == 0 else tokens)
        ratios.append(ratio)
        wrong += not fine
    passed = sum(ratio > 1 for ratio in ratios)
    text = f"{passed} of {options.budgets} budgets passed; the ratio of spend to budget is at most {max(ratios):.3f}"
    claims.check(not passed, text)
    claims.check(not wrong, f"{wrong} runs ended with a wrong exit code, or without a word of the budget")


def unbounded(photos: Path, out: Path, model: StandIn, claims: Claims) -> Charged:
    """A run without a budget: what it cost, which is also what it wrote down."""
    since = model.stats()
    run_to_the_end(run_flags(photos, out, model.url))
    whole, written = spent(model, since), journaled(out)
    tokens, usd = written["input_tokens"] + written["output_tokens"], float(written["usd"])
    print(f"without a budget: {whole.calls} calls, {whole.tokens:,} tokens, ${whole.usd:.4f}")
    same = (written["calls"], tokens) == (whole.calls, whole.tokens) and abs(usd - whole.usd) < 1e-6
    claims.check(same, f"written down: {written['calls']} calls, {tokens:,} tokens, ${usd:.4f}")
    return whole


def bounded(photos: Path, out: Path, model: StandIn, flag: tuple[str, str]) -> tuple[float, bool]:
    """A run with a budget, and another: what both spent of it, and whether they ended as they should."""
    command = run_flags(photos, out, model.url, *flag)
    since = model.stats()
    first = run_child(command)
    once = spent(model, since)
    second = run_child(command)
    both = spent(model, since)
    ratio = (both.usd if flag[0] == "--budget_usd" else both.tokens) / float(flag[1])
    said = next((line for line in first.output.splitlines() if "--budget" in line), "")
    complete = len(list(photos.iterdir())) == done(out)
    print(f"  {' '.join(flag)}: {once.calls} and {both.calls - once.calls} calls, {ratio:.1%} of it; {said}")
    if complete:
        return ratio, second.code == 0
    failed = "failed by reason" in first.output + second.output  # an answer that broke twice
    return ratio, first.code == second.code == 1 and bool(said or failed)


def done(out: Path) -> int:
    """Complete run folders."""
    return sum('"complete": true' in path.read_text() for path in out.glob("*/run.json"))


def forecasts(root: Path, model: StandIn, options: argparse.Namespace, claims: Claims) -> None:
    """What `--dry_run` says, against what the run then cost."""
    photos = make_photos(root / "more_photos", options.forecast_images, SIZE)
    out = root / "forecast"
    few = max(1, options.forecast_images // 10)
    since = model.stats()
    before = forecast(photos, out, model)
    claims.check(model.stats() == since, "--dry_run asks nothing")
    run_child(run_flags(photos, out, model.url, "--max_images", str(few)))
    first = spent(model, since)
    since = model.stats()
    between = forecast(photos, out, model)
    run_to_the_end(run_flags(photos, out, model.url))
    rest = spent(model, since)
    whole = Charged(first.calls + rest.calls, first.tokens + rest.tokens, first.usd + rest.usd)
    off = before.calls / whole.calls
    print(f"--dry_run in an empty folder: {before}; it cost {whole}; tokens {before.tokens / whole.tokens:.2f} of it")
    claims.check(abs(off - 1) <= NEAR, f"calls of --dry_run / of the run, by defaults: {off:.2f}")
    print(f"--dry_run after {few} images: {between}; it cost {rest}")
    ratios = [between.calls / rest.calls, between.tokens / rest.tokens, between.usd / rest.usd]
    said = ", ".join(f"{ratio:.2f}" for ratio in ratios)
    claims.check(all(abs(r - 1) <= NEAR for r in ratios), f"--dry_run / the run, in calls, tokens and dollars: {said}")


def forecast(photos: Path, out: Path, model: StandIn) -> Charged:
    """The total that `--dry_run` prints."""
    ended = run_child([*run_flags(photos, out, model.url), "--dry_run"])
    line = next((line for line in ended.output.splitlines() if re.search(r"\btotal\b", line, re.IGNORECASE)), "")
    numbers = [float(n.replace(",", "")) for n in re.findall(r"\$?(\d[\d,]*(?:\.\d+)?)", line)]
    if ended.code or len(numbers) < 4:
        raise SystemExit(f"--dry_run has no total of calls, tokens in, tokens out and dollars:\n{ended.output}")
    return Charged(int(numbers[0]), int(numbers[1] + numbers[2]), numbers[-1])


if __name__ == "__main__":
    raise SystemExit(main())
