"""`DATASET_CARD.md`: what an export holds, how it was made, and what a user of it should know."""

from __future__ import annotations

import html
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from dataengine.agreement import agreement_lines, rate_text
from dataengine.errors import one_line, output_error
from dataengine.figures import bin_names, missing_families
from dataengine.finished import Maker
from dataengine.records import CONCEPTS, Agreement, ExportManifest, Figures, Share, Spread
from dataengine.run_folder import write_whole

CARD = "DATASET_CARD.md"
OWN = "<!-- yours: what stands between these two lines is kept when you export again -->"
END = "<!-- end of yours -->"
UNTOLD = """Licence: *fill in, such as CC BY 4.0; the photos' own licences bind it*

Contact: *fill in*"""

LEFT_OUT = {
    "verdict_not_accept": "the engine rejected the prompt",
    "negative_not_accept": "the engine rejected the negative",
    "review_not_accept": "a person rejected it",
    "not_reviewed": "no person judged it, and only judged ones were wanted",
    "satisfying_empty": "it means no region",
    "prompt_blank": "it has no words",
    "mask_empty": "its mask has nothing inside at the image's size",
}
DONE_BY_PEOPLE = {
    "accepted": "accepted by a person",
    "rejected": "rejected by a person",
    "verdict_turned": "of both, against the engine's verdict",
    "text_edited": "given another text",
    "regions_changed": "given other regions",
    "review_lapsed": "decided of, and no more or another now: the decision counts no more",
    "review_line_damaged": "lines of reviews.jsonl that cannot be read",
}


def write_card(out: Path, manifest: ExportManifest, makers: Mapping[str, int]) -> None:
    """Write the card of an export; what a user wrote into the one that is there is kept.

    Args:
        out: the export's folder.
        manifest: complete, with figures.
        makers: number of images by how their run folders were made, as JSON of `Maker`; empty where it is not told.

    Raises:
        OutputError: it cannot be written, or the one that is there cannot be read.
    """
    try:
        before = (out / CARD).read_bytes().decode("utf-8", "surrogateescape").replace("\r\n", "\n")
    except FileNotFoundError:
        before = ""
    except OSError as error:
        raise output_error(error, out / CARD) from error
    own = re.search(rf"{re.escape(OWN)}[ \t]*\n(?:(.*?)\n)?{re.escape(END)}", before, re.DOTALL)
    kept = own[1] or "" if own else before.strip() or UNTOLD  # a card without the two marks is all a user's own
    text = card(out.name, manifest, makers, kept)
    if text != before:
        write_whole(out / CARD, text.encode("utf-8", "surrogateescape"), durable=False)


def card(name: str, manifest: ExportManifest, makers: Mapping[str, int], own: str) -> str:
    """The card's text: Markdown in which no name or prompt can be anything but text."""
    figures = manifest.figures
    assert figures is not None  # of a complete export
    sections = [
        f"# {_text(name)}\n\nPairs of a prompt and the mask it means, for conversational segmentation.",
        f"{OWN}\n{own}\n{END}",
        "## Contents", *_contents(figures),
        "## How it was made", *_made(makers),
        "## What was left out", *_filters(manifest),
        "## Coverage", *_coverage(figures),
        "## What people say of it", *_people(manifest, figures.agreement),
        "## Known limits", *_limits(makers, figures),
    ]  # fmt: skip
    return "\n\n".join(sections) + "\n"


def _contents(figures: Figures) -> Iterator[str]:
    pairs = sum(share.accepted for share in figures.prompts.values())
    negatives = sum(share.accepted for share in figures.negatives.values())
    told = f"{counted(figures.images, 'image')}, {counted(pairs, 'pair')}, {counted(negatives, 'negative')}"
    yield f"{told} (prompts that fit nothing: empty masks)."
    rows = [
        (concept, f"{_of(figures.prompts, concept):,}", f"{_of(figures.negatives, concept):,}") for concept in CONCEPTS
    ]
    yield _table(("concept", "pairs", "negatives"), rows)
    found = [(c, _text(family), f"{s.accepted:,}") for c, of in figures.families.items() for family, s in of.items()]
    if found:
        yield _table(("concept", "family", "pairs"), found)


def _of(shares: Mapping[str, Share], concept: str) -> int:
    return shares[concept].accepted if concept in shares else 0


def _made(makers: Mapping[str, int]) -> Iterator[str]:
    for text, images in Counter(makers).most_common():
        if not text:
            yield f"{counted(images, 'image')} from run folders that do not say how they were made."
            continue
        maker = Maker.model_validate_json(text)
        lines = [f"{counted(images, 'image')} by DataEngine {_text(maker.dataengine)}{':' if maker.parts else '.'}\n"]
        for kind, part in maker.parts.items():
            detail = ", ".join(f"{_text(key)} {_text(value)}" for key, value in part.detail.items())
            lines.append(f"- {_text(kind)}: {_text(part.name)} {_text(part.version)}{f' ({detail})' if detail else ''}")
        yield "\n".join(lines).rstrip()
        if maker.prompt_digests:
            digests = [(_text(name), _text(digest[:16])) for name, digest in sorted(maker.prompt_digests.items())]
            yield _table(("prompt template", "SHA-256, first 16 digits"), digests)


def _filters(manifest: ExportManifest) -> Iterator[str]:
    reasons = sorted(manifest.skipped_reason_counts.items(), key=lambda entry: -entry[1])
    if reasons:
        rows = [(reason, LEFT_OUT.get(reason, ""), f"{count:,}") for reason, count in reasons]
        yield _table(("reason", "meaning", "count"), rows)
    else:
        yield "Nothing."


def _coverage(figures: Figures) -> Iterator[str]:
    yield _table(
        ("", "least", "median", "mean", "greatest"),
        [
            ("pairs of an image", *_numbers(figures.prompts_per_image, "{:.0f}", "{:.1f}")),
            ("words of a prompt", *_numbers(figures.prompt_words, "{:.0f}", "{:.1f}")),
            ("share of the image in the mask", *_numbers(figures.mask_area, "{:.2%}", "{:.2%}")),
        ],
    )
    rows = [
        (name, f"{count:,}")
        for name, count in zip(bin_names(figures.mask_area.edges, percent=True), figures.mask_area.counts, strict=True)
    ]
    yield _table(("share of the image in the mask", "pairs"), rows)
    missing = {concept: missing_families(concept, figures.families.get(concept, {})) for concept in CONCEPTS}
    told = [f"- {concept}: {', '.join(names)}" for concept, names in missing.items() if names]
    if told:
        yield "Families without a pair:\n\n" + "\n".join(told)
    for concern in figures.concerns:
        if concern.kind != "missing_families":
            examples = "".join(f"\n- {_text(example)}" for example in concern.examples)
            yield f"{concern.count:,} {_text(concern.told)}.\n{examples}".rstrip()


def _numbers(spread: Spread, whole: str, mean: str) -> list[str]:
    shown = ((spread.least, whole), (spread.median, whole), (spread.mean, mean), (spread.greatest, whole))
    return ["-" if value is None else form.format(value) for value, form in shown]


def _people(manifest: ExportManifest, found: Agreement | None) -> Iterator[str]:
    if manifest.reviews == "ignore":
        yield "People's decisions were not read for this export (`--reviews ignore`)."
        return
    counts = manifest.review_counts
    done = [f"- {words}: {counts[name]:,}" for name, words in DONE_BY_PEOPLE.items() if name in counts]
    wins = "only what they accept is here" if manifest.reviews == "only" else "their word wins over the engine's"
    if done:
        yield f"People's decisions were applied: {wins}. Prompts\n\n" + "\n".join(done)
    if found is None:
        yield (
            "Nobody has judged a prompt: how often the engine is right is not known. `dataengine review` asks people, "
            "and `dataengine agreement` says what their verdicts tell."
        )
        return
    rows = [
        (name, f"{of.reviewed:,}", f"{of.corrected:,}", rate_text(of.precision), rate_text(of.recall))
        for name, of in (*found.concepts.items(), ("all but negatives", found.all))
    ]
    yield _table(("concept", "judged", "corrected", "precision of the engine's ACCEPT", "recall"), rows)
    yield "In brackets 95 % Wilson intervals. What a person corrected counts as not accepted."
    yield "\n".join(f"- {_text(line)}" for line in agreement_lines(found))


def _limits(makers: Mapping[str, int], figures: Figures) -> Iterator[str]:
    limits = [
        "Masks were cut and prompts written and judged by models, whose errors they have, unless people judged them.",
        "Prompts are short English sentences written for the picture, not asked by people who needed an answer.",
        "Several prompts of one photo share its regions, so they are not independent: split by photo.",
        "A region that was not described cannot be meant by a prompt: small and common things are under-represented.",
    ]
    parts = [Maker.model_validate_json(text).parts for text in makers if text]
    if any("annotator" in of and of["annotator"].name == "measured" for of in parts):
        limits.append(
            "The annotator `measured` has no model behind it: its regions are areas of even colour and its prompts say "
            "only what it measured. Such data is for trying and testing, not for training."
        )
    if sum(share.accepted for share in figures.negatives.values()):
        limits.append("Masks of negatives are all black: a loss or a metric must be ready for that.")
    yield "\n".join(f"- {limit}" for limit in limits)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _text(text: str) -> str:
    """Any text as Markdown that shows it as it is, on one line, also where a line begins with it."""
    plain = html.escape(one_line(text).strip(), quote=False)
    for link, broken in (("://", "&#58;//"), ("www.", "www&#46;"), ("@", "&#64;")):  # else taken for links
        plain = plain.replace(link, broken)
    plain = re.sub(r"([\\`*\[\]|~$]|(?<!&)#|(?<![a-zA-Z0-9])_|_(?![a-zA-Z0-9]))", r"\\\1", plain)
    return re.sub(r"^([-+=:])", r"\\\1", re.sub(r"^(\d+)([.)])(?=\s|$)", r"\1\\\2", plain))


def counted(number: int, what: str) -> str:
    """A number of things in words."""
    return f"{number:,} {what}{'s' * (number != 1)}"
