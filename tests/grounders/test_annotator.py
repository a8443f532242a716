from __future__ import annotations

import asyncio

import pytest

from dataengine.grounders.annotator import AnnotatorGrounder
from dataengine.records import DescribedRegion, Usage, Xyxy
from dataengine.settings import load_settings
from tests.scenes import Drawing


@pytest.mark.parametrize("boxes", [[], [(1.0, 2.0, 3.5, 4.0)], [(5.0, 5.0, 9.0, 9.0), (1.0, 2.0, 3.0, 4.0)]])
def test_the_boxes_that_came_with_the_label_in_their_order_for_free(boxes: list[Xyxy]) -> None:
    grounder = AnnotatorGrounder(load_settings({"preset": "offline"}))
    answer = asyncio.run(grounder.ground(Drawing.ground().photo(), DescribedRegion(label="cup", boxes=boxes)))
    assert [detection.box for detection in answer.value] == boxes
    assert answer.usage == Usage()


def test_it_asks_the_annotator_for_boxes() -> None:
    assert AnnotatorGrounder.needs_boxes
