from __future__ import annotations

from typing import Any

import pytest

from dataengine.basis import UPSTREAM, basis, fingerprint
from dataengine.journal import digest
from dataengine.settings import Settings
from tests.scripted import Script, settings

VIEWED = {"describe", "verify", "align", "refute", *(s for s in UPSTREAM if "/" in s)}
CHANGES: dict[str, tuple[Any, set[str]]] = {
    "max_regions": (3, {"describe"}),
    "vlm_side": (640, VIEWED),
    "max_side": (900, set(UPSTREAM)),
    "iou_threshold": (0.9, {"segment"}),
    "clean_pixels": (7, {"segment"}),
    "min_pool_pixels": (9, {"propose", "segment"}),
}
CHANGE_NOTHING: dict[str, Any] = {
    "concurrency": 3, "rpm": 7, "tpm": 7, "budget_usd": 1.5, "budget_tokens": 9, "price": (1.0, 2.0), "max_images": 2,
    "retry_seconds": 1, "vlm_timeout": 1, "recursive": True, "overwrite": True, "concepts": ("physics",),
    "negatives": False, "device": "cpu",
}  # fmt: skip


def of(**other: Any) -> dict[str, dict[str, object]]:
    return basis(Script().parts(), settings(**other))


@pytest.mark.parametrize("name", CHANGES)
def test_a_setting_of_results_changes_the_stages_that_use_it(name: str) -> None:
    value, stages = CHANGES[name]
    before, after = of(), of(**{name: value})
    assert {stage for stage in UPSTREAM if before[stage] != after[stage]} == stages
    assert fingerprint("photo", before) != fingerprint("photo", after)


@pytest.mark.parametrize("name", CHANGE_NOTHING)
def test_how_a_run_is_done_changes_no_result(name: str) -> None:
    assert getattr(settings(), name) != CHANGE_NOTHING[name]
    assert of(**{name: CHANGE_NOTHING[name]}) == of()


def test_every_setting_is_a_part_s_own_or_named_here() -> None:
    """A new one must be thought about: `Annotator.basis` and the versions of parts stand for theirs."""
    parts_own = {
        "preset", "annotator", "grounder", "segmenter", "vlm", "vlm_base_url", "vlm_output", "temperature", "thinking",
        "safety", "prompts_dir", "exhaustive", "config", "checkpoint", "grounder_model", "grounder_revision",
        "trust_remote_code", "box_threshold", "moondream_url", "precision", "device_batch", "points_per_side",
    }  # fmt: skip
    assert parts_own | set(CHANGES) | set(CHANGE_NOTHING) == set(Settings.model_fields)


def test_the_stages_are_those_of_the_graph_each_after_its_upstream() -> None:
    assert list(of()) == list(UPSTREAM)
    seen: set[str] = set()
    for stage, before in UPSTREAM.items():
        assert set(before) <= seen
        seen.add(stage)


def test_the_fingerprint_is_of_photo_and_basis() -> None:
    assert fingerprint("a", of()) == fingerprint("a", digest(of()))
    assert fingerprint("a", of()) != fingerprint("b", of())
