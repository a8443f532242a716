"""Write the generated parts of dataengine/DATAENGINE.md: the commands' help and the tables of every record.

`python scripts/write_reference.py` rewrites them; `--check` only says whether they are up to date.
"""

from __future__ import annotations

import argparse
import re
import sys
import types
import typing
from pathlib import Path
from typing import Any

from pydantic import BaseModel

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from convseg.flags import parser as convseg_parser  # noqa: E402 - the checkout's own packages
from dataengine import records  # noqa: E402
from dataengine.flags import parser as dataengine_parser  # noqa: E402

REFERENCE = ROOT / "dataengine" / "DATAENGINE.md"
HELP_WIDTH = 100


def main() -> int:
    """Rewrite or check; the exit code."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--check", action="store_true")
    written = REFERENCE.read_text(encoding="utf-8")
    wanted = fill(written)
    if arguments.parse_args().check:
        if written != wanted:
            print(f"{REFERENCE.relative_to(ROOT)} is out of date: run `make docs`", file=sys.stderr)
        return int(written != wanted)
    REFERENCE.write_text(wanted, encoding="utf-8")
    return 0


def fill(text: str) -> str:
    """The text with every block `<!-- help NAME -->` and `<!-- record NAME -->` made anew, up to its `<!-- end -->`."""

    def block(match: re.Match[str]) -> str:
        kind, name = match["kind"], match["name"]
        body = help_text(name) if kind == "help" else record_table(getattr(records, name))
        return f"<!-- {kind} {name} -->\n{body}\n<!-- end -->"

    return re.sub(r"<!-- (?P<kind>help|record) (?P<name>\w+) -->\n.*?<!-- end -->", block, text, flags=re.DOTALL)


def help_text(command: str) -> str:
    """A command's `--help` as a code block, at a fixed width and without colours."""
    found = next(
        action.choices[command]
        for commands in (dataengine_parser(), convseg_parser())
        for action in commands._actions
        if isinstance(action, argparse._SubParsersAction) and command in action.choices
    )
    found.formatter_class = lambda prog: argparse.RawDescriptionHelpFormatter(prog, width=HELP_WIDTH)
    return f"```text\n{found.format_help().rstrip()}\n```"


def record_table(record: type[BaseModel]) -> str:
    """A record's fields as a Markdown table."""
    rows = ["| field | type | meaning |", "|---|---|---|"]
    for name, field in record.model_fields.items():
        rows.append(f"| `{name}` | {_type(field.annotation)} | {field.description or ''} |")
    return "\n".join(rows)


def _type(annotation: Any) -> str:
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is None or annotation is type(None):
        return "null"
    if origin is typing.Annotated:
        return _type(inner[0])
    if origin is typing.Literal:
        return ", ".join(f"`{value}`" for value in inner)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_type(part) for part in inner)
    if origin is list:
        return f"list of {_type(inner[0])}"
    if origin is tuple:
        return "[" + ", ".join(_type(part) for part in inner) + "]"
    if origin is dict:
        return f"object of {_type(inner[1])} by {_type(inner[0])}"
    return str({str: "string", object: "any"}.get(annotation, annotation.__name__))


if __name__ == "__main__":
    sys.exit(main())
