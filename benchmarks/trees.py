"""Output folders compared: what two runs over the same photos must have in common.

Left out is what belongs to a process and not to its results: seconds (`timing`), what was paid (`usage`,
`gemini_usage`: a re-ask costs again), the engine's own files (`.dataengine*`) and the list of what failed. Of a journal
the lines are compared as a set of keys with their results: their order and seconds are those of a process, and so are
lines of steps that failed.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

OF_A_PROCESS = ("timing", "usage", "gemini_usage")
JOURNAL = "journal.jsonl"
FAILURES = "failures.jsonl"


def tree(out: Path) -> dict[str, str]:
    """By path in an output folder, a digest of what must be equal; temporary files that were left are in it."""
    files = (path for path in sorted(out.rglob("*")) if path.is_file())
    named = ((str(path.relative_to(out)), path) for path in files)
    kept = ((name, path) for name, path in named if not name.startswith(".dataengine") and name != FAILURES)
    return {name: hashlib.sha256(_essence(path)).hexdigest() for name, path in kept}


def _essence(path: Path) -> bytes:
    if path.name == JOURNAL:
        results = sorted(json.dumps([line["key"], line["result"]]) for line in lines(path) if "result" in line)
        return "\n".join(dict.fromkeys(results)).encode()
    if path.suffix == ".json":
        return json.dumps(_without(json.loads(path.read_bytes())), sort_keys=True).encode()
    return path.read_bytes()


def _without(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without(entry) for key, entry in value.items() if key not in OF_A_PROCESS}
    return [_without(entry) for entry in value] if isinstance(value, list) else value


def lines(journal: Path) -> Iterator[dict[str, Any]]:
    """The whole lines of a journal."""
    for raw in journal.read_bytes().splitlines():
        try:
            yield json.loads(raw)
        except ValueError:
            continue


def differences(one: Path, other: Path) -> list[str]:
    """The paths in which two output folders differ, each with how."""
    mine, theirs = tree(one), tree(other)
    gone = [f"{name}: missing" for name in sorted(mine.keys() - theirs.keys())]
    more = [f"{name}: not wanted" for name in sorted(theirs.keys() - mine.keys())]
    return [*gone, *more, *(f"{name}: differs" for name in mine if name in theirs and mine[name] != theirs[name])]


def done_twice(out: Path) -> int:
    """Steps whose result stands in a journal more than once."""
    return sum(
        sum(count - 1 for count in Counter(line["key"] for line in lines(path) if "result" in line).values())
        for path in out.glob(f"*/{JOURNAL}")
    )


def journaled(out: Path) -> Counter[str]:
    """What the journals of an output folder say was paid: `calls`, `input_tokens`, `output_tokens` and `usd`."""
    paid: Counter[str] = Counter()
    for path in out.glob(f"*/{JOURNAL}"):
        for line in lines(path):
            usage = {k: v for k, v in line.get("usage", {}).items() if isinstance(v, int | float)}
            paid.update(usage)
    return paid
