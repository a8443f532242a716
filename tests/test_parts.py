from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dataengine import parts
from dataengine.errors import MissingPartError
from dataengine.parts import REGISTRY, Entry, build
from dataengine.settings import PRESETS, Settings, load_settings


class OwnSegmenter:
    """A part of the user's own, named by module and class."""

    name, version = "own", "3"

    def __init__(self, settings: Settings) -> None:
        self.detail = {"pool": str(settings.min_pool_pixels)}


def offline(**flags: Any) -> Settings:
    return load_settings({"preset": "offline", **flags})


def test_offline_is_built_and_recorded() -> None:
    records = build(offline()).records()
    assert {kind: record.name for kind, record in records.items()} == PRESETS["offline"]
    assert records["segmenter"].detail.keys() == {"opencv", "scikit-image"}
    assert all(record.version for record in records.values())


@pytest.mark.parametrize("kind", REGISTRY)
def test_every_preset_names_registered_parts(kind: str) -> None:
    assert {preset[kind] for preset in PRESETS.values()} <= set(REGISTRY[kind])


def test_a_part_of_the_users_own() -> None:
    record = build(offline(segmenter=f"{__name__}:OwnSegmenter", min_pool_pixels=77)).records()["segmenter"]
    assert (record.name, record.version, record.detail) == ("own", "3", {"pool": "77"})


@pytest.mark.parametrize("name", ["mod:", "no_such_module:X", ":X", "json:NoSuchClass", "..relative:X", "json.x:Y"])
def test_a_part_that_cannot_be_imported(name: str) -> None:
    with pytest.raises(MissingPartError) as caught:
        build(offline(annotator=name))
    assert f"annotator {name!r} cannot be built" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_all_that_is_lacking_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = Entry("nowhere:Nothing", (lambda settings: "luck (pip install luck)", lambda settings: "a key"))
    monkeypatch.setitem(REGISTRY["grounder"], "lucky", entry)
    with pytest.raises(MissingPartError) as caught:
        build(offline(annotator="nobody", grounder="lucky", segmenter="future"))
    text = str(caught.value)
    assert "annotator 'nobody' does not exist (there are " in text
    assert "grounder 'lucky' needs luck (pip install luck) and a key" in text
    assert "segmenter 'future' does not exist" in text
    assert "--preset offline" not in text
    with pytest.raises(MissingPartError, match="--preset offline"):
        build(offline(preset="standard", annotator="nobody"))


class Bare:
    """A part that lacks what the engine reads of it."""

    name = version = "bare"

    def __init__(self, settings: Settings) -> None:
        self.detail: dict[str, str] = {}


def test_a_part_that_lacks_an_attribute_is_named_with_it() -> None:
    with pytest.raises(MissingPartError, match=r"annotator 'tests.test_parts:Bare' has no attribute local, templates"):
        build(offline(annotator="tests.test_parts:Bare"))


class Refusing(OwnSegmenter):
    """A part that cannot be opened."""

    async def __aenter__(self) -> None:
        raise OSError("no socket")

    async def __aexit__(self, *raised: object) -> None:
        raise OSError("never entered")


def test_a_part_that_cannot_be_opened_is_one_line_and_closes_the_others() -> None:
    closed: list[str] = []

    class Opening(OwnSegmenter):
        async def __aenter__(self) -> None:
            closed.append("opened")

        async def __aexit__(self, *raised: object) -> None:
            closed.append("closed")
            raise OSError("which loses nothing")

    async def enter(segmenter: Any) -> None:
        built = build(offline())
        async with parts.Parts(Opening(offline()), built.grounder, segmenter):  # type: ignore[arg-type]
            pass

    with pytest.raises(MissingPartError, match="a part cannot be opened: OSError: no socket"):
        asyncio.run(enter(Refusing(offline())))
    asyncio.run(enter(build(offline()).segmenter))
    assert closed == ["opened", "closed"] * 2


def test_a_users_module_is_found_beside_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "parts_of_a_user.py").write_text(
        "from dataengine.segmenters.classical import ClassicalSegmenter\n"
        "class Mine(ClassicalSegmenter):\n    name = 'mine'\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert build(offline(segmenter="parts_of_a_user:Mine")).segmenter.name == "mine"


@pytest.mark.parametrize(
    ("vlm", "environment", "expected"),
    [
        ("google:gemini-flash-latest", {}, "a key (set GOOGLE_API_KEY)"),
        ("google:gemini-flash-latest", {"GOOGLE_API_KEY": ""}, "a key (set GOOGLE_API_KEY)"),
        ("google:gemini-flash-latest", {"GOOGLE_API_KEY": "k"}, None),
        ("google:gemini-flash-latest", {"GEMINI_API_KEY": "k"}, None),
        ("openai:model", {"GOOGLE_API_KEY": "k"}, "a key (set OPENAI_API_KEY)"),
        ("anthropic:model", {"ANTHROPIC_API_KEY": "k"}, None),
    ],
)
def test_the_key(monkeypatch: pytest.MonkeyPatch, vlm: str, environment: dict[str, str], expected: str | None) -> None:
    for name in ("GOOGLE_API_KEY", "GEMINI_API_KEY", "OPENAI_API_KEY", "ANTHROPIC_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert parts._vlm_key(offline(vlm=vlm)) == expected


@pytest.mark.parametrize(
    ("module", "expected"), [("json", None), ("no_such_module", "no_such_module (pip install the-thing)")]
)
def test_a_module(module: str, expected: str | None) -> None:
    assert parts._module(module, "the-thing")(offline()) == expected


def test_importing_the_registry_imports_no_part() -> None:
    code = "import sys, dataengine.parts; print([m for m in ('torch', 'skimage', 'cv2') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
