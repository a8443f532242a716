from __future__ import annotations

import errno
import os

import pytest

from dataengine.errors import (
    DataEngineError,
    ImageError,
    MissingPartError,
    OutputError,
    StageError,
    UsageError,
    one_line,
    output_error,
)


@pytest.mark.parametrize(
    ("error", "parent", "reason", "exit_code"),
    [
        (UsageError, DataEngineError, "usage", 2),
        (MissingPartError, UsageError, "missing_part", 2),
        (ImageError, DataEngineError, "unreadable", 1),
        (OutputError, DataEngineError, "output", 1),
        (StageError, DataEngineError, "stage_failed", 1),
    ],
)
def test_tree(error: type[DataEngineError], parent: type[DataEngineError], reason: str, exit_code: int) -> None:
    assert issubclass(error, parent)
    assert (error("x").reason, error("x").exit_code) == (reason, exit_code)


@pytest.mark.parametrize(
    ("message", "hint", "expected"),
    [
        ("a.jpg: empty file", "", "a.jpg: empty file"),
        ("a.jpg: empty file", "Replace it", "a.jpg: empty file. Replace it"),
        ("a\nb.jpg: empty file", "Replace\tit", "a\\nb.jpg: empty file. Replace\\tit"),
    ],
)
def test_text_is_one_line_with_the_hint(message: str, hint: str, expected: str) -> None:
    assert str(UsageError(message, hint=hint)) == expected


def test_a_reason_of_its_own_does_not_leak_into_the_class() -> None:
    assert ImageError("x", reason="truncated").reason == "truncated"
    assert ImageError("x").reason == "unreadable"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain", "plain"),
        ("näïve 日本 😀", "näïve 日本 😀"),
        ("a\nb\r\tc", "a\\nb\\r\\tc"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("line\u2028separator", "line\\u2028separator"),
        ("undecodable \udce9", "undecodable \\udce9"),
    ],
)
def test_one_line(text: str, expected: str) -> None:
    assert one_line(text) == expected
    assert len(one_line(text).splitlines()) == 1


@pytest.mark.parametrize(
    ("number", "reason", "words"),
    [
        (errno.ENOSPC, "disk_full", "disk full while writing out/x. Free some space and run the same command again"),
        (errno.EDQUOT, "disk_full", "disk full while writing out/x"),
        (errno.EACCES, "output", "cannot write out/x: Permission denied. Choose another output folder"),
        (errno.EROFS, "output", "cannot write out/x: Read-only file system. Choose another output folder"),
        (errno.EIO, "output", "cannot write out/x: Input/output error"),
    ],
)
def test_output_error(number: int, reason: str, words: str) -> None:
    error = output_error(OSError(number, os.strerror(number)), "out/x")
    assert isinstance(error, OutputError)
    assert (error.reason, str(error)[: len(words)]) == (reason, words)


def test_output_error_without_a_number_keeps_the_text() -> None:
    assert str(output_error(OSError("odd"), "out/x")) == "cannot write out/x: odd"
