"""One image, start to end. Read this file and you have read the method.

    image -> describe ─┐
             propose  ─┴> segment -> verify -> ┬ compose   -> align     five concepts, side by side
                                               └ negatives -> align     and their hard negatives

Whatever costs money or computing time is a step of the image's journal: run again, it is not done again.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from dataengine.annotators import Scene, SceneRegion
from dataengine.errors import STOPPING, DataEngineError, StageError, StoppedError
from dataengine.images import Photo, RgbArray
from dataengine.journal import BLOCKED
from dataengine.masks import Mask
from dataengine.overlays import prompt_picture
from dataengine.parts import Parts
from dataengine.records import (
    AcceptedRegion,
    Alignment,
    Negative,
    NegativeVerification,
    Prompt,
    PromptVerification,
    RegionResult,
    RunRecord,
    Summary,
    Verdict,
)
from dataengine.run_folder import ACCEPTED_DIR, ALL_REGIONS, RunFolder, path_text
from dataengine.settings import Settings
from dataengine.stages import all_of
from dataengine.stages.align import align, align_negative
from dataengine.stages.compose import broken_negative_rule, broken_rule, compose, compose_negatives, rule_name
from dataengine.stages.describe import describe
from dataengine.stages.propose import propose
from dataengine.stages.segment import segment
from dataengine.stages.verify import JudgedRegion, verify

T = TypeVar("T")


@dataclass
class Outcome:
    """What one image gave; (written, accepted) counts by concept."""

    regions: int
    accepted: int
    note: str
    prompts: dict[str, tuple[int, int]] = field(default_factory=dict)
    negatives: dict[str, tuple[int, int]] = field(default_factory=dict)
    refused: Counter[str] = field(default_factory=Counter)  # by the rule that code refused a text for


@dataclass(frozen=True)
class Run:
    """One image with its judged regions, on its way through the last stages."""

    photo: Photo
    folder: RunFolder
    parts: Parts
    judged: list[JudgedRegion]
    scene: Scene
    outcome: Outcome


async def process(photo: Photo, folder: RunFolder, record: RunRecord, parts: Parts, settings: Settings) -> Outcome:
    """Make one image's run folder.

    Where a concept fails, the others are still written, the folder stays incomplete, and the failure is raised.

    Args:
        record: what `run.json` will say; `complete` is false.

    Raises:
        DataEngineError: its `stage` says where.
    """
    steps = folder.journal
    await asyncio.to_thread(folder.begin, record)

    async def proposed() -> list[Mask]:
        return await _in_stage("propose", photo, propose(photo, parts, settings, steps))

    pool = asyncio.create_task(proposed())
    try:
        described = await _in_stage("describe", photo, describe(photo, parts, settings, steps))
        cuts = await _in_stage("segment", photo, segment(photo, described, pool, parts, settings, steps))
    except DataEngineError as error:
        if not isinstance(error, STOPPING):
            await asyncio.gather(pool, return_exceptions=True)  # what it computes is kept for the next run
        raise
    finally:
        pool.cancel()
        await asyncio.gather(pool, return_exceptions=True)
    judged = await _in_stage("verify", photo, verify(photo, cuts, parts, steps))
    accepted = await asyncio.to_thread(folder.write_regions, photo, judged)

    outcome = Outcome(len(judged), len(accepted), _note(judged))
    outcome.refused.update(_rules(region.verdict.reason for region in judged))
    run = Run(photo, folder, parts, judged, _scene(photo, judged, accepted), outcome)
    failures = await _write_concepts(run, settings.concepts, settings.concepts if settings.negatives else ())
    if failures:
        raise min(failures, key=lambda f: (f.reason == BLOCKED, isinstance(f, StoppedError)))
    finished = {"complete": True, "note": outcome.note, "usage": steps.paid_by_stage()}
    await asyncio.to_thread(folder.finish, record.model_copy(update=finished))
    return outcome


async def _write_concepts(run: Run, concepts: Sequence[str], negatives: Sequence[str]) -> list[DataEngineError]:
    """Compose everything side by side, then judge and write everything side by side; the failures met."""
    scene, parts, steps = run.scene, run.parts, run.folder.journal
    (prompts, failed), (decoys, failed_decoys) = await asyncio.gather(
        _each(concepts, lambda c: _in_stage("compose", run.photo, compose(scene, c, parts, steps))),
        _each(negatives, lambda c: _in_stage("negatives", run.photo, compose_negatives(scene, c, parts, steps))),
    )
    # In the order of concepts, not of answers: which of two equal prompts counts must not depend on timing.
    texts: list[str] = []
    refused = {
        concept: [_noted(broken_rule(p, concept, scene, texts), p.prompt, texts) for p in written]
        for concept, written in prompts.items()
    }
    refused_decoys = {
        concept: [_noted(broken_negative_rule(n, concept, texts), n.prompt, texts) for n in written]
        for concept, written in decoys.items()
    }
    (_, unwritten), (_, unwritten_decoys) = await asyncio.gather(
        _each(prompts, lambda concept: _judge_prompts(run, concept, prompts[concept], refused[concept])),
        _each(decoys, lambda concept: _judge_negatives(run, concept, decoys[concept], refused_decoys[concept])),
    )
    return [*failed, *failed_decoys, *unwritten, *unwritten_decoys]


def _noted(reason: str | None, text: str, texts: list[str]) -> str | None:
    """The reason a text is refused for; one that is not joins `texts`, which later ones are compared with."""
    if reason is None:
        texts.append(text)
    return reason


async def _judge_prompts(run: Run, concept: str, prompts: list[Prompt], refused: list[str | None]) -> None:
    """Judge a concept's prompts side by side, then write the concept's files."""

    async def judge(index: int) -> tuple[PromptVerification, RgbArray]:
        prompt, reason = prompts[index], refused[index]
        known = [i for i in prompt.satisfying if 0 <= i < len(run.scene.regions)]
        picture = await asyncio.to_thread(prompt_picture, run.photo.view, run.scene.picked(known), prompt.prompt)
        verdict = Alignment(accept=False, unmasked_match=False, reason=reason or "")
        if reason is None:
            which = f"{concept}/{index:02d}"
            verdict = await align(run.scene, which, prompt, picture, run.parts, run.folder.journal)
        path = run.folder.viz_path(concept, index, prompt, _said(verdict))
        return _verification(index, prompt, verdict, path), picture

    judged = await _in_stage("align", run.photo, all_of(judge(index) for index in range(len(prompts))))
    verifications = [verification for verification, _ in judged]
    run.outcome.prompts[concept] = _counts(verifications)
    run.outcome.refused.update(_rules(entry.reason for entry in verifications))
    summary = _summary(run, concept, prompts, verifications)
    pictures = {verification.classified_path: picture for verification, picture in judged}
    await asyncio.to_thread(run.folder.write_concept, summary, concept, pictures)


async def _judge_negatives(run: Run, concept: str, negatives: list[Negative], refused: list[str | None]) -> None:
    """Judge a concept's negatives side by side, then write them."""

    async def judge(index: int) -> NegativeVerification:
        negative, reason = negatives[index], refused[index]
        verdict = Alignment(accept=False, unmasked_match=False, reason=reason or "")
        if reason is None:
            which = f"{concept}/{index:02d}"
            verdict = await align_negative(run.scene, which, negative, run.parts, run.folder.journal)
        return NegativeVerification(**negative.model_dump(), verdict=_said(verdict), reason=_why(verdict))

    judged = await _in_stage("align", run.photo, all_of(judge(index) for index in range(len(negatives))))
    run.outcome.negatives[concept] = _counts(judged)
    run.outcome.refused.update(_rules(entry.reason for entry in judged))
    await asyncio.to_thread(run.folder.write_negatives, concept, judged)


def _verification(index: int, prompt: Prompt, verdict: Alignment, path: str) -> PromptVerification:
    return PromptVerification(
        index=index,
        prompt=prompt.prompt,
        satisfying=prompt.satisfying,
        verdict=_said(verdict),
        reason=_why(verdict),
        src_path=path,
        classified_path=path,
    )


def _said(verdict: Alignment) -> Verdict:
    return "ACCEPT" if verdict.accept and not verdict.unmasked_match else "REJECT"


def _why(verdict: Alignment) -> str:
    if verdict.accept and verdict.unmasked_match:
        return f"something outside the masks fits as well: {verdict.reason}"
    return verdict.reason or "the annotator gave no reason"


def _counts(judged: Sequence[PromptVerification | NegativeVerification]) -> tuple[int, int]:
    return len(judged), sum(entry.verdict == "ACCEPT" for entry in judged)


def _rules(reasons: Iterable[str]) -> list[str]:
    """The names of the rules among the reasons."""
    return [name for reason in reasons if (name := rule_name(reason))]


def _summary(run: Run, concept: str, prompts: list[Prompt], verifications: list[PromptVerification]) -> Summary:
    return Summary(
        image_path=path_text(run.photo.path),
        dense_caption="\n".join(f"[{region.index}: {region.label}]" for region in run.judged),
        results=[_result(region) for region in run.judged],
        accepted_count=len(run.scene.regions),
        accepted_dir=ACCEPTED_DIR,
        final_overlay_path=ALL_REGIONS,
        accepted_dense_caption=run.scene.caption,
        conversational_prompts_path=run.folder.prompts_path(concept),
        conversational_prompts=prompts if run.scene.regions else None,
        generated_prompts_viz_dir=run.folder.viz_dir(concept),
        timing=run.folder.journal.timing(),
        gemini_usage=run.folder.journal.usage,
        prompt_verifications=verifications,
    )


def _result(region: JudgedRegion) -> RegionResult:
    choice = region.verdict.choice
    return RegionResult(
        index=region.index,
        label=region.label,
        verify_initial=region.mask is not None,
        desc_init=region.verdict.description if choice == "initial" else None,
        desc_ref=region.verdict.description if choice == "refined" else None,
        output=None if choice == "neither" else choice,
        reason=region.verdict.reason,
    )


def _scene(photo: Photo, judged: list[JudgedRegion], accepted: list[AcceptedRegion]) -> Scene:
    masks = [region.mask for region in judged if region.mask is not None]
    regions = zip(accepted, masks, strict=True)
    return Scene(photo, tuple(SceneRegion(a.index, a.label, a.description, mask) for a, mask in regions))


def _note(judged: list[JudgedRegion]) -> str:
    if not judged:
        return "No region was described in this image, so there are no prompts."
    if not any(region.mask is not None for region in judged):
        return f"None of the {len(judged)} described regions was accepted, so there are no prompts."
    if sum(region.mask is not None for region in judged) == 1:
        return "A single region was accepted, and a prompt chooses among two or more, so there are none but negatives."
    return ""


async def _each(
    concepts: Iterable[str], work: Callable[[str], Awaitable[T]]
) -> tuple[dict[str, T], list[DataEngineError]]:
    """Do the work for every concept side by side: results by concept, and the failures of the others."""
    names = list(concepts)
    results = await asyncio.gather(*(work(name) for name in names), return_exceptions=True)
    done: dict[str, T] = {}
    failures: list[DataEngineError] = []
    for name, result in zip(names, results, strict=True):
        if isinstance(result, DataEngineError) and not isinstance(result, STOPPING):
            failures.append(result)
        elif isinstance(result, BaseException):
            raise result
        else:
            done[name] = result
    return done, failures


async def _in_stage(stage: str, photo: Photo, work: Awaitable[T]) -> T:
    """Await a stage's work; what it raises says the stage and the image."""
    try:
        return await work
    except StageError as error:
        if not error.stage:
            error.stage = stage
            error.message = error.message if str(photo.path) in error.message else f"{photo.path}: {error.message}"
        raise
    except DataEngineError as error:
        error.stage = error.stage or stage
        raise
    except Exception as error:  # a part is other people's code: what it raises must not end the run
        failure = StageError(
            f"{photo.path}: {stage} failed: {type(error).__name__}: {error}", hint="Run again to retry"
        )
        failure.stage = stage
        raise failure from error
