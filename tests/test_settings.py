from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dataengine.errors import UsageError
from dataengine.records import CONCEPTS
from dataengine.settings import MOONDREAM_CLOUD, PRESETS, QUESTIONS, SAM2_CONFIGS, THINKING, load_settings

OFFLINE = {"preset": "offline"}


@pytest.fixture
def toml(tmp_path: Path) -> Path:
    return tmp_path / "settings.toml"


@pytest.mark.parametrize(
    ("flags", "file", "key", "expected"),
    [
        ({}, "", "preset", "standard"),
        ({}, "", "max_regions", 8),
        ({}, "max_regions = 3", "max_regions", 3),
        ({"max_regions": 4}, "max_regions = 3", "max_regions", 4),
        ({}, "", "segmenter", "sam2"),
        ({"preset": "offline"}, "", "segmenter", "classical"),
        ({}, "preset = 'offline'", "segmenter", "classical"),
        ({"preset": "offline"}, "preset = 'standard'", "segmenter", "classical"),
        ({}, "preset = 'offline'\nsegmenter = 'sam3'", "segmenter", "sam3"),
        ({"preset": "offline"}, "segmenter = 'sam3'", "segmenter", "sam3"),
        ({"segmenter": "sam2"}, "preset = 'offline'\nsegmenter = 'sam3'", "segmenter", "sam2"),
        ({"segmenter": "sam2"}, "preset = 'offline'", "annotator", "measured"),
        ({}, "\ufeffmax_regions = 3", "max_regions", 3),
        ({"concepts": "physics, entities"}, "", "concepts", ("entities", "physics")),
        ({}, "concepts = ['spatial', 'spatial']", "concepts", ("spatial",)),
        ({}, "", "concepts", CONCEPTS),
        ({}, "", "temperature", dict.fromkeys(QUESTIONS, 0.7)),
        ({"temperature": "0.1"}, "", "temperature", dict.fromkeys(QUESTIONS, 0.1)),
        ({}, "temperature = 1", "temperature", dict.fromkeys(QUESTIONS, 1.0)),
        ({"temperature": "0, align=1"}, "", "temperature", {**dict.fromkeys(QUESTIONS, 0.0), "align": 1.0}),
        ({}, "[temperature]\nalign = 1", "temperature", {**dict.fromkeys(QUESTIONS, 0.7), "align": 1.0}),
        ({}, "", "thinking", THINKING),
        ({"thinking": "verify=256"}, "", "thinking", {**THINKING, "verify": 256}),
        ({"thinking": "off,compose=high"}, "", "thinking", {**dict.fromkeys(QUESTIONS, "off"), "compose": "high"}),
        ({"vlm_base_url": "http://localhost:8000/v1/"}, "", "vlm_base_url", "http://localhost:8000/v1"),
        ({"moondream_url": f"{MOONDREAM_CLOUD}/"}, "", "moondream_url", MOONDREAM_CLOUD),
        ({}, "thinking = 64", "thinking", dict.fromkeys(QUESTIONS, 64)),
    ],
)
def test_flags_win_over_the_file_and_the_file_over_the_preset(
    toml: Path, flags: dict[str, Any], file: str, key: str, expected: object
) -> None:
    toml.write_text(file, encoding="utf-8")
    assert getattr(load_settings(flags, toml), key) == expected


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_names_three_parts(preset: str) -> None:
    settings = load_settings({"preset": preset})
    assert {k: getattr(settings, k) for k in ("annotator", "grounder", "segmenter")} == PRESETS[preset]


@pytest.mark.parametrize("folder", ["", "configs/sam2.1/", "/opt/sam2/configs/"])
@pytest.mark.parametrize("config", SAM2_CONFIGS)
def test_every_config_name_is_accepted(config: str, folder: str) -> None:
    assert load_settings({"config": folder + config}).config == folder + config


def test_metas_config_names_are_known() -> None:
    sizes = ("t", "s", "b+", "l")
    assert set(SAM2_CONFIGS) == {f"{v}_hiera_{s}.yaml" for v in ("sam2", "sam2.1") for s in sizes}


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"max_region": 3}, "unknown setting 'max_region'. Did you mean 'max_regions'?"),
        ({"max-regions": 3}, "Did you mean 'max_regions'?"),
        ({"zzz": 3}, "unknown setting 'zzz'. Keys are preset, annotator, "),
        ({"preset": "ofline"}, "there is no preset 'ofline'. There are standard, published, offline"),
        ({"preset": ["offline"]}, "there is no preset ['offline']"),
        ({"max_regions": 0}, "--max_regions: Input should be greater than or equal to 1 (got 0)"),
        ({"max_regions": "many"}, "--max_regions: "),
        ({"max_side": 63}, "--max_side: Input should be greater than or equal to 64 (got 63)"),
        ({"iou_threshold": 1.5}, "--iou_threshold: "),
        ({"iou_threshold": float("nan")}, "--iou_threshold: "),
        ({"concurrency": 0}, "--concurrency: "),
        ({"annotator": 3}, "--annotator: "),
        ({"vlm": {"a": 1}}, "--vlm: "),
        ({"vlm": "gemini"}, "--vlm: 'gemini' is not PROVIDER:MODEL"),
        ({"vlm": "google:"}, "--vlm: 'google:' is not PROVIDER:MODEL"),
        ({"vlm": "a\nb"}, "--vlm: "),
        ({"concepts": ""}, "--concepts: unknown concept ''"),
        ({"temperature": "hot"}, "--temperature: 'hot' is not a number"),
        ({"temperature": 3}, "--temperature: a temperature lies in 0..2, not 3.0"),
        ({"temperature": "nan"}, "--temperature: a temperature lies in 0..2"),
        ({"temperature": "judge=1"}, "--temperature: there is no question 'judge'; there are describe, verify"),
        ({"thinking": "deep"}, "--thinking: 'deep' is not a number of tokens or one of off, auto"),
        ({"thinking": "align=-1"}, "--thinking: '-1' is not a number"),
        ({"vlm_base_url": "localhost:8000/v1"}, "--vlm_base_url: not a URL such as"),
        ({"vlm_base_url": "http://localhost:99999"}, "--vlm_base_url: not a URL such as"),
        ({"moondream_url": "ftp://x/"}, "--moondream_url: not a URL such as"),
        ({"moondream_url": "http://me:s3cret@host/v1"}, "--moondream_url: a URL with a name or password"),
        ({"vlm": "gemini-flash-latest"}, "is not PROVIDER:MODEL"),
        ({"vlm": "mistral:large"}, "of google, openai, anthropic"),
        ({"vlm_output": "xml"}, "--vlm_output: "),
        ({"vlm_side": 10}, "--vlm_side: "),
        ({"vlm_timeout": 0}, "--vlm_timeout: "),
        ({"safety": "most"}, "--safety: "),
        ({"box_threshold": 1.5}, "--box_threshold: "),
        ({"precision": "int4"}, "--precision: "),
        ({"clean_pixels": -1}, "--clean_pixels: "),
        ({"concepts": []}, "--concepts: name at least one concept"),
        ({"concepts": 7}, "--concepts: name at least one concept"),
        ({"concepts": "entities,entites"}, "--concepts: unknown concept 'entites'; there are entities, spatial"),
        ({"config": "sam2.1_hiera_x.yaml"}, "--config: there is no config 'sam2.1_hiera_x.yaml'; there are sam2_"),
        ({"config": "sam2_hiera_l.yaml/"}, None),
        ({"config": ""}, "--config: there is no config ''"),
    ],
)
def test_a_wrong_value_is_one_line_that_names_it(flags: dict[str, Any], words: str | None) -> None:
    if words is None:
        assert load_settings(flags).config == flags["config"]
        return
    with pytest.raises(UsageError) as caught:
        load_settings({**OFFLINE, **flags})
    assert words in str(caught.value)
    assert "s3cret" not in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"max_regions = ", "not valid TOML"),
        (b"[concepts", "not valid TOML"),
        (b"max_regions = 1\nmax_regions = 2", "not valid TOML"),
        (b"vlm = '\xff'", "cannot be read"),
        (b"max_region = 1", "unknown setting 'max_region'. Did you mean 'max_regions'?"),
    ],
)
def test_a_wrong_file_is_named(toml: Path, content: bytes, words: str) -> None:
    toml.write_bytes(content)
    with pytest.raises(UsageError) as caught:
        load_settings(OFFLINE, toml)
    assert words in str(caught.value)
    assert str(toml) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(("name", "words"), [("none.toml", "no such file"), ("", "cannot be read")])
def test_a_file_that_cannot_be_opened_is_named(tmp_path: Path, name: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        load_settings(OFFLINE, tmp_path / name)
