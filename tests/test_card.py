"""The card of an export: what it counts, what a user wrote into it, and that no name in it is more than text."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

from dataengine.agreement import rate_text
from dataengine.card import CARD, END, OWN, UNTOLD, write_card
from dataengine.errors import OutputError, one_line
from dataengine.exporters.convseg import export
from dataengine.records import CONCEPT_FAMILIES, ExportManifest, Rate
from tests.exporters.folders import box, decide, our_run, picture, prompt, published_run, save, write_negatives
from tests.exporters.test_exporting_again import assert_like_new, edit

PART = {"name": "vlm", "version": "3", "detail": {"model": "gemini", "sdk": "2.1"}}


def make_runs(root: Path) -> Path:
    """Three run folders: two of DataEngine's, one of the published engine's."""
    source = save(root / "photos" / "a.png", picture())
    prompts = {
        "entities": [prompt(0), prompt(1, verdict="REJECT"), prompt(2, (0, 1))],
        "physics": [prompt(0, (1,), prompt="Segment what could fall over first")],
    }
    families = ["groups_and_piles", "unusual_entity", "groups_and_piles"]
    for name in ("a", "b"):
        folder = our_run(root / "runs", source, name, prompts=prompts if name == "a" else None)
        edit(folder / "run.json", lambda record: record.update(parts={"annotator": PART}))
    told = [{"concept_family": family} for family in families]
    summary = root / "runs" / "a" / "entities" / "summary.json"
    edit(summary, lambda summary: summary.update(conversational_prompts=told))
    write_negatives(root / "runs" / "a", "physics", "ACCEPT", "REJECT")
    published_run(root / "runs", str(source), "c", rgb=picture())
    return root / "runs"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    make_runs(tmp_path)
    return tmp_path


def card_of(out: Path) -> str:
    return (out / CARD).read_text(encoding="utf-8")


def made(root: Path, **options: Any) -> str:
    """The card of a new export."""
    export(root / "runs", root / "out", **options)
    return card_of(root / "out")


def section(text: str, title: str) -> str:
    """What stands under a heading."""
    [found] = [part for part in text.split("\n## ") if part.startswith(f"{title}\n\n")]
    return found.removeprefix(f"{title}\n\n").rstrip("\n")


# What it counts.


def test_the_sections_of_a_card(root: Path) -> None:
    text = made(root)
    assert text.startswith("# out\n\nPairs of a prompt and the mask it means, for conversational segmentation.\n\n")
    assert f"\n\n{OWN}\n{UNTOLD}\n{END}\n\n## Contents\n\n" in text
    assert [line.removeprefix("## ") for line in text.splitlines() if line.startswith("#")][1:] == [
        "Contents",
        "How it was made",
        "What was left out",
        "Coverage",
        "What people say of it",
        "Known limits",
    ]
    assert text.endswith(".\n") and "\n\n\n" not in text


def test_contents(root: Path) -> None:
    assert section(made(root, include_negatives=True), "Contents").splitlines() == [
        "3 images, 5 pairs, 1 negative (prompts that fit nothing: empty masks).",
        "",
        "| concept | pairs | negatives |",
        "| --- | --- | --- |",
        "| entities | 4 | 0 |",
        "| spatial | 0 | 0 |",
        "| relations | 0 | 0 |",
        "| affordances | 0 | 0 |",
        "| physics | 1 | 1 |",
        "",
        "| concept | family | pairs |",
        "| --- | --- | --- |",
        "| entities | groups_and_piles | 2 |",
        "| entities | not told | 2 |",
        "| physics | not told | 1 |",
    ]


def test_how_it_was_made(root: Path) -> None:
    digests = {"b_second": "0123456789abcdef0", "a": "f" * 64}
    edit(root / "runs" / "b" / "run.json", lambda record: record.update(dataengine="1.2", prompt_digests=digests))
    our_run(root / "runs", root / "photos" / "a.png", "d", prompts={"entities": [prompt(verdict="REJECT")]})
    our_run(root / "runs", root / "photos" / "a.png", "e")
    assert section(made(root), "How it was made").splitlines() == [
        "1 image by DataEngine 0:",
        "",
        "- annotator: vlm 3 (model gemini, sdk 2.1)",
        "",
        "1 image by DataEngine 1.2:",
        "",
        "- annotator: vlm 3 (model gemini, sdk 2.1)",
        "",
        "| prompt template | SHA-256, first 16 digits |",
        "| --- | --- |",
        "| a | ffffffffffffffff |",
        "| b_second | 0123456789abcdef |",
        "",
        "1 image from run folders that do not say how they were made.",
        "",
        "1 image by DataEngine 0.",
    ]


def test_images_that_were_made_alike_are_told_of_together_and_most_come_first(root: Path) -> None:
    edit(root / "runs" / "a" / "run.json", lambda record: record.update(dataengine="2", usage={"align": {"usd": 0.1}}))
    edit(root / "runs" / "b" / "run.json", lambda record: record.update(dataengine="2", usage={"align": {"usd": 0.2}}))
    published_run(root / "runs", str(root / "photos" / "a.png"), "d")
    published_run(root / "runs", str(root / "photos" / "a.png"), "e")
    lines = section(made(root), "How it was made").splitlines()
    assert lines[0] == "3 images from run folders that do not say how they were made."
    assert lines[2] == "2 images by DataEngine 2:"


def test_what_was_left_out_is_told_in_words_most_first(root: Path) -> None:
    refused = prompt(1, verdict="REJECT")
    for name in ("b", "c"):
        edit(root / "runs" / name / "entities" / "summary.json", lambda s: s["prompt_verifications"].append(refused))
    (root / "runs" / "c" / "accepted_regions" / "masks" / "000_mask.png").unlink()
    assert section(made(root, include_negatives=True), "What was left out").splitlines() == [
        "| reason | meaning | count |",
        "| --- | --- | --- |",
        "| verdict_not_accept | the engine rejected the prompt | 3 |",
        "| mask_missing |  | 1 |",
        "| negative_not_accept | the engine rejected the negative | 1 |",
    ]


def test_nothing_was_left_out(tmp_path: Path) -> None:
    our_run(tmp_path / "runs", save(tmp_path / "a.png", picture()))
    assert section(made(tmp_path), "What was left out") == "Nothing."


def test_coverage(root: Path) -> None:
    lines = section(made(root, include_negatives=True), "Coverage").splitlines()
    assert lines[:6] == [
        "|  | least | median | mean | greatest |",
        "| --- | --- | --- | --- | --- |",
        "| pairs of an image | 1 | 1 | 1.7 | 3 |",
        "| words of a prompt | 3 | 3 | 3.7 | 6 |",
        "| share of the image in the mask | 10.42% | 10.42% | 14.58% | 26.04% |",
        "",
    ]
    assert "| 3 to 10 % | 0 |" in lines and "| 10 to 30 % | 5 |" in lines and "| 95 % and more | 0 |" in lines
    assert sum(line.startswith("| ") and " % " in line for line in lines) == 10


def test_families_without_a_pair_are_named(root: Path) -> None:
    lines = section(made(root), "Coverage").splitlines()
    missing = lines[lines.index("Families without a pair:") + 2 :]
    assert [line.partition(":")[0] for line in missing[:5]] == [
        "- entities",
        "- spatial",
        "- relations",
        "- affordances",
        "- physics",
    ]
    assert "groups_and_piles" not in missing[0] and "materials_and_optics" in missing[0]
    assert "unusual_entity" in missing[0]  # its only prompt was rejected
    assert missing[2] == "- relations: atomic_posture, event_state, semantic_role, anticipation"


def test_concerns_are_told_with_examples(tmp_path: Path) -> None:
    source = save(tmp_path / "a.png", picture())
    entries = [prompt(0, (0,), prompt="Segment the box"), prompt(1, (1,), prompt="Find all of the box")]
    our_run(tmp_path / "runs", source, "a", masks=[box(0, 0, 2, 1), box(0, 0, 60, 40)], prompts={"entities": entries})
    told = section(made(tmp_path), "Coverage").partition("\n- physics: ")[2]
    assert told.splitlines()[2:] == [
        "1 pairs of accepted prompts of one image that say nearly the same.",
        "",
        "- a: Segment the box / Find all of the box",
        "",
        "1 accepted prompts whose mask is under 0.1% of the photo.",
        "",
        "- a: Segment the box (0.083% of the photo)",
        "",
        "1 accepted prompts whose mask is 95% of the photo or more.",
        "",
        "- a: Find all of the box (100% of the photo)",
    ]


def test_an_export_of_nothing_has_a_card(tmp_path: Path) -> None:
    published_run(tmp_path / "runs", "/nowhere/p.jpg")
    text = made(tmp_path)
    assert section(text, "Contents").startswith("0 images, 0 pairs, 0 negatives")
    assert "| family |" not in text
    assert "| pairs of an image | - | - | - | - |" in text
    assert "| share of the image in the mask | - | - | - | - |" in text


def test_no_name_of_a_family_is_said_to_be_missing_where_all_are_there(tmp_path: Path) -> None:
    source = save(tmp_path / "a.png", picture())
    families = CONCEPT_FAMILIES["relations"]
    prompts = {"relations": [prompt(index) for index in range(len(families))]}
    folder = our_run(tmp_path / "runs", source, prompts=prompts)
    told = [{"concept_family": family} for family in families]
    edit(folder / "relations" / "summary.json", lambda summary: summary.update(conversational_prompts=told))
    text = section(made(tmp_path), "Coverage")
    assert "- relations:" not in text and "- entities:" in text


# What its user should know.


def limits_of(text: str) -> list[str]:
    return section(text, "Known limits").splitlines()


def test_negatives_add_their_limit(root: Path) -> None:
    plain, negatives = (limits_of(made(root, include_negatives=wanted)) for wanted in (False, True))
    assert all(line.startswith("- ") for line in negatives)
    assert [line for line in negatives if line not in plain] == [
        "- Masks of negatives are all black: a loss or a metric must be ready for that."
    ]
    assert negatives[:4] == plain and len(plain) == 4


@pytest.mark.parametrize(
    ("parts", "is_told"),
    [
        ({"annotator": "measured"}, True),
        ({"grounder": "annotator", "annotator": "measured"}, True),
        ({"annotator": "vlm", "grounder": "measured"}, False),
        ({}, False),
    ],
)
def test_the_measured_annotator_adds_its_limit(root: Path, parts: dict[str, str], is_told: bool) -> None:
    told = {kind: {**PART, "name": name} for kind, name in parts.items()}
    edit(root / "runs" / "b" / "run.json", lambda record: record.update(parts=told))
    text = "\n".join(limits_of(made(root)))
    assert ("The annotator `measured` has no model behind it" in text) == is_told


def test_a_run_folder_that_gives_nothing_adds_no_limit(root: Path) -> None:
    edit(root / "runs" / "b" / "run.json", lambda r: r.update(parts={"annotator": {**PART, "name": "measured"}}))
    edit(root / "runs" / "b" / "entities" / "summary.json", lambda s: s.update(prompt_verifications=[]))
    assert "measured" not in made(root)


# What people say of it.


def people_of(text: str) -> list[str]:
    return section(text, "What people say of it").splitlines()


def judge(root: Path) -> None:
    """Two people judge the prompts of the first run folder: accepted, rejected, accepted and accepted by the engine."""
    folder = root / "runs" / "a"
    decide(folder, 0, "ACCEPT", by="bo")
    decide(folder, 3, "ACCEPT", by="bo")
    decide(folder, 0, "ACCEPT")
    decide(folder, 1, "ACCEPT")
    decide(folder, 2, "ACCEPT", text="Segment both of them")
    decide(folder, 3, "REJECT")


def test_where_nobody_has_judged_a_prompt_that_is_said(root: Path) -> None:
    [line] = people_of(made(root))
    assert line.startswith("Nobody has judged a prompt: how often the engine is right is not known.")


@pytest.mark.parametrize(
    ("mode", "said"),
    [("apply", "their word wins over the engine's"), ("only", "only what they accept is here")],
)
def test_what_people_did_is_told_in_numbers(root: Path, mode: str, said: str) -> None:
    """By hand: one of the engine's three accepted prompts is as a person wants it, of two that are."""
    judge(root)
    usage = {"describe": {"usd": 0.5}, "align": {"usd": 0.4}}
    edit(root / "runs" / "a" / "run.json", lambda record: record.update(usage=usage))
    (root / "runs" / "c").rename(root / "elsewhere")  # nobody knows what it cost
    assert people_of(made(root, reviews=mode)) == [
        f"People's decisions were applied: {said}. Prompts",
        "",
        "- accepted by a person: 3",
        "- rejected by a person: 1",
        "- of both, against the engine's verdict: 2",
        "- given another text: 1",
        "",
        "| concept | judged | corrected | precision of the engine's ACCEPT | recall |",
        "| --- | --- | --- | --- | --- |",
        "| entities | 3 | 1 | 50% (9% to 91%) | 50% (9% to 91%) |",
        "| physics | 1 | 0 | 0% (0% to 79%) | - |",
        "| all but negatives | 4 | 1 | 33% (6% to 79%) | 50% (9% to 91%) |",
        "",
        "In brackets 95 % Wilson intervals. What a person corrected counts as not accepted.",
        "",
        "- ana judged 4 prompts",
        "- bo judged 2 prompts",
        "- ana and bo: 50% equal verdicts on 2 prompts, Cohen's kappa 0.00",
        "- Judged: 75.0% of the accepted, 100.0% of the rejected prompts",
        "- Cost of a pair that a person would accept: \\$0.6750",
    ]


def test_the_cost_of_a_pair_is_not_told_where_nobody_knows_it(root: Path) -> None:
    judge(root)
    text = made(root)
    assert "- ana judged 4 prompts" in text and "Cost of a pair" not in text


def test_kappa_of_verdicts_that_are_all_the_same_is_not_defined(root: Path) -> None:
    for name in ("ana", "bo"):
        decide(root / "runs" / "a", 0, "ACCEPT", by=name)
    assert (
        "- ana and bo: 100% equal verdicts on 1 prompts, Cohen's kappa not defined, all verdicts are the same"
        in people_of(made(root))
    )


def test_judged_negatives_are_told_apart(root: Path) -> None:
    decide(root / "runs" / "a", 4, "REJECT")
    lines = people_of(made(root, include_negatives=True))
    assert "| negatives | 1 | 0 | 0% (0% to 79%) | - |" in lines
    assert "| all but negatives | 0 | 0 | - | - |" in lines


def test_where_decisions_are_ignored_that_is_said_and_nothing_of_them(root: Path) -> None:
    judge(root)
    assert people_of(made(root, reviews="ignore")) == [
        "People's decisions were not read for this export (`--reviews ignore`)."
    ]


@pytest.mark.parametrize(
    ("rate", "text"),
    [
        (Rate(hits=1, of=2, value=0.5, low=0.094, high=0.906), "50% (9% to 91%)"),
        (Rate(hits=0, of=3, value=0.0, low=0.0, high=0.56), "0% (0% to 56%)"),
        (Rate(hits=3, of=3, value=1.0, low=0.44, high=1.0), "100% (44% to 100%)"),
        (Rate(hits=0, of=0, value=None, low=None, high=None), "-"),
    ],
)
def test_a_rate_in_words(rate: Rate, text: str) -> None:
    assert rate_text(rate) == text


# No name is more than text.

HOSTILE = (
    "a | b",
    "<script>alert(1)<script>",
    "`code` ``",
    "line\nbreak\r\n\n# head",
    "*bold* _em_ ~~struck~~ __both__",
    "[link](x) ![picture](y) [x]: y",
    "# head",
    "&lt;b&gt; &amp; &#35;",
    "back\\slash \\| \\",
    "\x1b[31mred\u2028\u202e\t",
    END,
    OWN,
)


def make_named(root: Path, name: str) -> str:
    """The card of an export in which everything that can have a name has this one."""
    source = save(root / "photos" / "a.png", picture())
    entries = [prompt(index, prompt=name) for index in range(2)]
    masks = [box(0, 0, 1, 1)]
    folder = our_run(root / "runs", source, f"run {name}", masks=masks, prompts={"entities": entries})
    part = {"name": name, "version": name, "detail": {name: name}}
    edit(folder / "run.json", lambda record: record.update(dataengine=name, parts={name: part}))
    decide(folder, 0, by=name)
    decide(folder, 0, by=f"other {name}")
    out = root / f"out {name}"
    export(root / "runs", out)
    return card_of(out)


def parsed(text: str) -> list[Token]:
    return MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(text)


def structure_of(tokens: list[Token]) -> list[tuple[str, list[str]]]:
    return [(token.type, [child.type for child in token.children or []]) for token in tokens]


def shown_in(tokens: list[Token]) -> str:
    """What a reader sees of all paragraphs, headings and cells, a line each."""
    return "\n".join("".join(c.content for c in token.children or []) for token in tokens if token.type == "inline")


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_is_shown_as_it_is_and_changes_nothing_else(tmp_path: Path, name: str) -> None:
    """The card is built as one in which the same things have a harmless name."""
    tokens, plain = (parsed(make_named(tmp_path / which, of)) for which, of in (("a", name), ("b", "plain")))
    assert structure_of(tokens) == structure_of(plain)
    assert [t.content.strip().split("\n")[0] for t in tokens if "html" in t.type] == [OWN, END]
    assert shown_in(tokens).count(one_line(name)) == shown_in(plain).count("plain") > 10


@pytest.mark.skipif(sys.platform != "linux", reason="other systems allow only Unicode names")
def test_a_name_that_is_no_text_is_shown_somehow(tmp_path: Path) -> None:
    folder = our_run(tmp_path / "runs", save(tmp_path / "a.png", picture()), masks=[box(0, 0, 1, 1)])
    folder.rename(folder.parent / os.fsdecode(b"caf\xe9"))
    [line] = [line for line in made(tmp_path).splitlines() if "Segment thing 0" in line]
    assert line.startswith("- caf\ufffd-") and line.endswith(": Segment thing 0 (0.042% of the photo)")


# What a user wrote.


def write_own(out: Path, text: str) -> None:
    """What a user does: write between the two lines."""
    before = card_of(out)
    head, rest = before.split(f"{OWN}\n")
    (out / CARD).write_text(f"{head}{OWN}\n{text}\n{END}{rest.partition(END)[2]}", encoding="utf-8")


def own_in(text: str) -> str:
    return text.partition(f"{OWN}\n")[2].partition(f"\n{END}")[0]


OWN_TEXTS = (
    "Licence: CC BY 4.0",
    "",
    "\n\n",
    "Licence: „CC BY“\n\n- a list\n\n## Contents\n\nof mine",
    r"\1 \g<0> (.*)$ \n |",
    "| a | table |\n| --- | --- |\n| of | mine |",
    "<b>bold</b> <!-- a note -->",
    OWN,
)


@pytest.mark.parametrize("own", OWN_TEXTS)
def test_what_a_user_wrote_is_kept_and_the_rest_is_made_anew(root: Path, own: str) -> None:
    out = root / "out"
    before = made(root)
    write_own(out, own)
    (out / CARD).write_text(
        card_of(out).replace("## Contents\n\n3 images", "## Contents\n\n7 images"), encoding="utf-8"
    )
    our_run(root / "runs", root / "photos" / "a.png", "d")
    for _ in range(2):
        text = made(root)
        assert own_in(text) == own
        assert text.replace(f"{OWN}\n{own}\n{END}", f"{OWN}\n{UNTOLD}\n{END}") == before_with_one_more(root)
    assert text != before


def before_with_one_more(root: Path) -> str:
    """The card of a new export of the same name."""
    export(root / "runs", root / "fresh" / "out")
    return card_of(root / "fresh" / "out")


def test_what_a_user_wrote_ends_with_the_first_line_that_ends_it(root: Path) -> None:
    made(root)
    write_own(root / "out", f"Licence: mine\n{END}\n\nnot between the lines")
    our_run(root / "runs", root / "photos" / "a.png", "d")
    text = made(root)
    assert own_in(text) == "Licence: mine"
    assert "not between the lines" not in text and text.count(END) == 1


def test_lines_as_windows_ends_them_are_kept(root: Path) -> None:
    out = root / "out"
    made(root)
    write_own(out, "Licence: mine\nContact: me")
    (out / CARD).write_bytes(card_of(out).replace("\n", "\r\n").encode())
    our_run(root / "runs", root / "photos" / "a.png", "d")
    assert own_in(made(root)) == "Licence: mine\nContact: me"


@pytest.mark.parametrize("before", ["# A card of my own\n", f"{OWN}\nnever ended\n", f"mine\n{END}\n"])
def test_a_card_without_the_two_lines_is_kept_whole_between_them(root: Path, before: str) -> None:
    made(root)
    (root / "out" / CARD).write_text(before)
    assert before in made(root)


def test_a_card_that_was_removed_is_written_again(root: Path) -> None:
    made(root)
    (root / "out" / CARD).unlink()
    made(root)
    assert_like_new(root, root / "out")


def test_a_card_that_would_be_the_same_is_left_as_it_is(root: Path) -> None:
    made(root)
    write_own(root / "out", "Licence: mine")
    before = (root / "out" / CARD).stat()
    made(root)
    after = (root / "out" / CARD).stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


# A card that cannot be written.


def test_something_in_the_place_of_the_card_is_one_clear_line_and_no_complete_export(root: Path) -> None:
    out = root / "out"
    (out / CARD).mkdir(parents=True)
    (out / "export_manifest.json").write_text(export(root / "runs", root / "other").model_dump_json())
    with pytest.raises(OutputError, match=rf"cannot write .*out/{CARD}: Is a directory") as caught:
        export(root / "runs", out)
    assert "\n" not in str(caught.value)
    assert not ExportManifest.model_validate_json((out / "export_manifest.json").read_bytes()).complete
    (out / CARD).rmdir()
    export(root / "runs", out)
    assert_like_new(root, out)


@pytest.mark.parametrize(
    ("code", "said"), [(errno.ENOSPC, "disk full while writing"), (errno.EROFS, "cannot write"), (errno.EIO, "cannot")]
)
def test_a_card_that_cannot_be_written_leaves_the_one_before(
    root: Path, monkeypatch: pytest.MonkeyPatch, code: int, said: str
) -> None:
    def refuse(self: Path, data: bytes) -> int:
        raise OSError(code, os.strerror(code))

    out = root / "out"
    manifest = export(root / "runs", out)
    (out / CARD).write_text("# A card of an earlier version\n")
    monkeypatch.setattr(Path, "write_bytes", refuse)
    with pytest.raises(OutputError, match=f"{said}.*{CARD}"):
        write_card(out, manifest, {"": 3})
    assert card_of(out) == "# A card of an earlier version\n"
    assert not list(out.glob(".*.tmp"))


def test_a_card_that_may_not_be_read_is_not_lost(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, *_: object, **__: object) -> bytes:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    out = root / "out"
    manifest = export(root / "runs", out)
    before = (out / CARD).read_bytes()
    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(OutputError, match=CARD):
        write_card(out, manifest, {"": 3})
    monkeypatch.undo()
    assert (out / CARD).read_bytes() == before
