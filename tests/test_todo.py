"""Several runs at once over the same images: the work is shared, and no image is done twice."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest

from dataengine.engine import Totals, run
from dataengine.errors import StageError
from dataengine.leases import Owner
from dataengine.output_folder import Failures
from dataengine.records import RunRecord
from dataengine.run_folder import path_text
from tests.scripted import Script, settings, tree, two_things
from tests.test_engine import Recorder, save


def photos(folder: Path, count: int) -> list[Path]:
    return [save(folder / f"{i}.png", (i * 9, 90, 90)) for i in range(count)]


async def one(images: Sequence[Path], out: Path, script: Script, concurrency: int = 2) -> Totals:
    chosen = settings(concepts=("entities", "spatial"), concurrency=concurrency)
    return await run(images, out, script.parts(), chosen, Recorder())


async def together(*runs: tuple[Sequence[Path], Path, Script]) -> list[Totals]:
    return list(await asyncio.gather(*(one(*each) for each in runs)))


def test_two_runs_share_the_images_and_each_waits_for_the_other_s(tmp_path: Path) -> None:
    images, scripts = photos(tmp_path, 8), [two_things(seconds=0.01), two_things(seconds=0.02)]
    for name in ("out", "alone"):
        (tmp_path / name).mkdir()
    first, second = asyncio.run(together(*((images, tmp_path / "out", script) for script in scripts)))
    assert first.done + second.done == 8
    assert first.done and second.done
    assert (first.done + first.skipped, second.done + second.skipped) == (8, 8)
    assert sum(script.made["describe"] for script in scripts) == 8
    asyncio.run(one(images, tmp_path / "alone", two_things()))
    assert tree(tmp_path / "out") == tree(tmp_path / "alone")


def test_two_images_of_one_name_in_two_runs_get_a_folder_each(tmp_path: Path) -> None:
    images = [save(tmp_path / folder / "photo.png", colour) for folder, colour in (("a", (9, 9, 9)), ("b", (80, 9, 9)))]
    (tmp_path / "out").mkdir()
    runs = [([image], tmp_path / "out", two_things(seconds=0.02)) for image in images]
    totals = asyncio.run(together(*runs))
    assert [each.done for each in totals] == [1, 1]
    records = [RunRecord.model_validate_json(p.read_bytes()) for p in (tmp_path / "out").glob("*/run.json")]
    assert sorted(record.source.path for record in records) == sorted(map(path_text, images))
    again = asyncio.run(one(images, tmp_path / "out", two_things()))
    assert (again.done, again.skipped) == (0, 2)


def test_a_dead_one_s_image_is_taken_over(tmp_path: Path) -> None:
    images, out = photos(tmp_path, 3), tmp_path / "out"
    out.mkdir()

    async def dies_meanwhile() -> Totals:
        with Owner(out) as dead:
            assert dead.claim("out_region_refine_1", path_text(images[1])) == "ours"
            going = asyncio.create_task(one(images, out, script))
            while script.made["describe"] < 2 or (out / "out_region_refine_1").exists():
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.6)  # it looks again, and waits on
            assert not going.done()
        return await going

    script = two_things()
    assert asyncio.run(dies_meanwhile()).done == 3


def test_the_failures_of_both_are_listed(tmp_path: Path) -> None:
    images, out = photos(tmp_path, 4), tmp_path / "out"
    out.mkdir()
    scripts = [two_things(seconds=0.02, fails={"describe": [StageError("no")]}) for _ in range(2)]
    first, second = asyncio.run(together(*((images, out, script) for script in scripts)))
    assert first.failed == second.failed == 1
    assert first.waiting == second.waiting == 0
    done = {p.parent.name for p in out.glob("*/run.json") if RunRecord.model_validate_json(p.read_bytes()).complete}
    failed = {f"out_region_refine_{Path(failure.image).stem}" for failure in Failures(out).listed}
    assert done | failed == {f"out_region_refine_{image.stem}" for image in images}


@pytest.mark.parametrize("count", [0, 3])
def test_a_run_over_done_images_takes_none(tmp_path: Path, count: int) -> None:
    images, script = photos(tmp_path, count), two_things()
    (tmp_path / "out").mkdir()
    asyncio.run(one(images, tmp_path / "out", script))
    made = script.made.total()
    again = asyncio.run(one(images, tmp_path / "out", script))
    assert (again.done, again.skipped, script.made.total()) == (0, count, made)


def test_a_name_that_is_taken_for_another_image_is_still_that_image_s(tmp_path: Path) -> None:
    """One run has `b/photo.png`; the other has `a/photo.png` as well, which sorts before it and wants its name."""
    a, b = (save(tmp_path / folder / "photo.png", colour) for folder, colour in (("a", (9, 9, 9)), ("b", (80, 9, 9))))
    out, script = tmp_path / "out", two_things()
    out.mkdir()

    async def both() -> Totals:
        with Owner(out) as other:
            assert other.claim("out_region_refine_photo", path_text(b)) == "ours"
            going = asyncio.create_task(one([a, b], out, script))
            while script.made["describe"] < 1:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.6)
            assert not going.done()
        return await going

    assert asyncio.run(both()).done == 2
    records = {p.parent.name: RunRecord.model_validate_json(p.read_bytes()) for p in out.glob("*/run.json")}
    assert records["out_region_refine_photo"].source.path == path_text(b)
    assert len(records) == 2
