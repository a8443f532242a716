"""One run folder's image and masks, as files of an export. Runs in worker processes."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Collection
from pathlib import Path

from dataengine.agreement import judged_prompts
from dataengine.bits import Bits
from dataengine.exporters.runs import Sample, read_run
from dataengine.exporters.state import Staged, StagedSample
from dataengine.finished import Finished
from dataengine.images import RUN_FOLDER_PREFIX
from dataengine.records import CONCEPTS, ReviewMode, Share, Usage
from dataengine.run_folder import path_text, write_whole
from dataengine.sources import digest, unchanged

IMAGES = "images"
MASKS = "masks"
NAME_BYTES = 255  # the longest file name of common file systems
SUFFIX_BYTES = 17  # the longest suffix of an image


def stage(
    folder: Path,
    out: Path,
    *,
    negatives: bool,
    reviews: ReviewMode,
    earlier: str | None,
    taken: Collection[str] = (),
) -> str:
    """Write a run folder's image and masks into an export, where they are not there already.

    Args:
        folder: the run folder.
        out: the export's folder.
        negatives: stage its negatives too.
        reviews: how people's decisions are taken.
        earlier: what this function returned for the run folder before, if anything.
        taken: case-folded names of image files that are other runs'.

    Returns:
        A `Staged` as a line of JSON. It is the earlier one where nothing has changed since.

    Raises:
        OutputError: a file cannot be written.
    """
    if earlier and _holds(earlier, folder, out, (negatives, reviews), taken):
        return earlier
    run = read_run(folder, negatives=negatives, reviews=reviews)
    image = image_name(folder.name, run.image.suffix, taken) if run.image else None
    if run.image:
        _write(out / IMAGES / f"{image}", run.image.data)
    pngs: dict[Bits, tuple[bytes, str]] = {}  # prompts that mean the same have one mask
    samples = [_staged(out, folder.name, number, sample, pngs) for number, sample in enumerate(run.samples)]
    maker = run.found.maker
    paid = maker.paid if maker else None
    return Staged(
        run=run_text(folder),
        negatives=negatives,
        reviews=reviews,
        sources=run.sources,
        image=image,
        image_digest=run.image.digest if run.image else "",
        samples=samples,
        skipped=dict(sorted(run.skipped.items())),
        reviewed=dict(sorted(run.reviewed.items())),
        judged=judged_prompts(run.found),
        verdicts=_verdicts(run.found, negative=False),
        refused=_verdicts(run.found, negative=True),
        maker=maker.model_dump_json(exclude={"usage", "complete"}) if maker else "",
        usage=Usage(usd=None) if paid is None else sum(paid.values(), Usage()),
    ).model_dump_json()


def run_text(folder: Path) -> str:
    """A run folder's name as text; no two of one folder have the same."""
    return _short(folder.name, NAME_BYTES)


def mask_path(sample: StagedSample) -> str:
    """Where a sample's mask is in an export."""
    return f"{MASKS}/{sample.id}.png"


def image_stems(run_name: str) -> tuple[str, str]:
    """What the image of a run is called without its suffix: as the photo was, or as the run folder is."""
    return run_name.removeprefix(RUN_FOLDER_PREFIX) or run_name, run_name


def is_plain_name(run_name: str) -> bool:
    """Whether a run's image can have its name uncut."""
    return _short(run_name, NAME_BYTES - SUFFIX_BYTES) == run_name


def image_name(run_name: str, suffix: str, taken: Collection[str]) -> str:
    """A name no other run has: `out_region_refine_a` and `a` must not share one."""
    room = NAME_BYTES - len(suffix)
    name = ""
    for stem in (*image_stems(run_name), f"{_name_digest(run_name)}-{run_name}"):
        name = _short(stem, room) + suffix
        if name.casefold() not in taken:
            break
    return name


def _verdicts(found: Finished, *, negative: bool) -> dict[str, Share]:
    """The engine's verdicts by concept."""
    told = {concept: [0, 0] for concept in CONCEPTS}
    for entry in found.entries:
        if entry.negative == negative:
            told[entry.concept][not entry.accepted] += 1
    return {concept: Share(accepted=n[0], rejected=n[1]) for concept, n in told.items() if any(n)}


def _holds(earlier: str, folder: Path, out: Path, how: tuple[bool, ReviewMode], taken: Collection[str]) -> bool:
    """Whether an earlier result is what staging again would give, and its files are there as they were written."""
    try:
        staged = Staged.model_validate_json(earlier)
    except ValueError:
        return False
    if staged.sources is None or (staged.negatives, staged.reviews) != how or staged.run != run_text(folder):
        return False
    files = {mask_path(sample): sample.digest for sample in staged.samples}
    if staged.image:
        if staged.image != image_name(folder.name, Path(staged.image).suffix, taken):
            return False
        files[f"{IMAGES}/{staged.image}"] = staged.image_digest
    return unchanged(folder, staged.sources) and all(_is_written(out / name, d) for name, d in files.items())


def _is_written(path: Path, wanted: str) -> bool:
    """Whether there is a plain file with content of that digest."""
    try:
        return stat.S_ISREG(path.lstat().st_mode) and digest(path.read_bytes()) == wanted
    except OSError:
        return False


def _staged(out: Path, run_name: str, number: int, sample: Sample, pngs: dict[Bits, tuple[bytes, str]]) -> StagedSample:
    if sample.mask not in pngs:
        png = sample.mask.png()
        pngs[sample.mask] = (png, digest(png))
    png, png_digest = pngs[sample.mask]
    staged = StagedSample(
        id=_sample_id(run_name, sample, number),
        concept=sample.concept,
        family=sample.family,
        prompt=sample.prompt,
        negative=sample.negative,
        area=sample.mask.area / (sample.mask.height * sample.mask.width),
        digest=png_digest,
    )
    _write(out / mask_path(staged), png)
    return staged


def _write(path: Path, data: bytes) -> None:
    """Write a file, unless it is there with this very content."""
    try:
        status = path.lstat()
        if stat.S_ISREG(status.st_mode) and status.st_size == len(data) and path.read_bytes() == data:
            return
    except OSError:  # not there, or not to be read: writing tells what is wrong
        pass
    write_whole(path, data, durable=False)  # it can be exported again


def _sample_id(run_name: str, sample: Sample, number: int) -> str:
    tail = f"_{sample.concept}_{sample.index:03d}_{number:06d}"
    return _short(run_name, NAME_BYTES - len(tail) - len(".png")) + tail


def _short(name: str, room: int) -> str:
    """The name, or its beginning and a digest where it has over `room` bytes or is not UTF-8."""
    raw = os.fsencode(name)
    clean = path_text(Path(name))
    if clean == name and len(raw) <= room:
        return name
    tail = _name_digest(name)
    head = clean.encode()[: room - len(tail) - 1].decode("utf-8", "ignore")
    return f"{head}-{tail}"


def _name_digest(name: str) -> str:
    return hashlib.sha256(os.fsencode(name)).hexdigest()[:12]
