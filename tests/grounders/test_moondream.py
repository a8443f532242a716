from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dataengine import jpeg, retry
from dataengine.errors import DataEngineError, KeyRefusedError, StageError, UsageError
from dataengine.grounders.moondream import MoondreamGrounder
from dataengine.images import Photo, RgbArray
from dataengine.journal import Answer
from dataengine.records import DescribedRegion, Detection, Usage
from dataengine.settings import Settings, load_settings
from tests.photos import coffee
from tests.standins.moondream_server import KEY, Box, MoondreamServer, Reply

CUP: Box = (0.25, 0.5, 0.5, 1.0)
LONG = "x" * 5000
ODD = ["a/b\\c", 'line\nbreak "quoted" \x00', "../../etc/passwd", "Ωμέγα 日本 🥄", "half \ud800 pair", LONG, "???"]


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOONDREAM_API_KEY", KEY)


@pytest.fixture
def photo() -> Photo:
    return Photo(Path("coffee.png"), np.asarray(coffee(1200)), "0" * 64)


def settings(server: MoondreamServer, **other: Any) -> Settings:
    kept = {"preset": "offline", "grounder": "moondream", "moondream_url": server.url, "retry_seconds": 0}
    return load_settings({**kept, "vlm_timeout": 5, **other})


def ask(chosen: Settings, photo: Photo, *labels: str) -> list[Answer[list[Detection]]]:
    async def main() -> list[Answer[list[Detection]]]:
        async with MoondreamGrounder(chosen) as grounder:
            asked = (grounder.ground(photo, DescribedRegion(label=label, boxes=[])) for label in labels)
            return await asyncio.gather(*asked)

    return asyncio.run(main())


def fails(server: MoondreamServer, photo: Photo, **other: Any) -> DataEngineError:
    with server, pytest.raises(DataEngineError) as caught:
        ask(settings(server, **other), photo, "cup")
    assert len(str(caught.value).splitlines()) == 1
    assert KEY not in str(caught.value)
    return caught.value


@pytest.mark.parametrize("boxes", [[], [CUP], [CUP, (0.0, 0.0, 1.0, 0.125)]])
def test_boxes_are_in_pixels_of_the_photo(photo: Photo, boxes: list[Box]) -> None:
    with MoondreamServer(lambda label: boxes, key=KEY) as server:
        (answer,) = ask(settings(server), photo, "cup")
    expected = [(1200 * x0, 800 * y0, 1200 * x1, 800 * y1) for x0, y0, x1, y1 in boxes]
    assert [detection.box for detection in answer.value] == expected
    assert all(detection.score is None and detection.mask is None for detection in answer.value)
    (asked,) = server.asked
    assert (asked.label, asked.size, asked.key, server.refused) == ("cup", (768, 512), KEY, [])


def test_a_photo_is_encoded_once_for_all_its_labels(photo: Photo, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded: list[int] = []
    encode = jpeg.jpeg

    def counted(rgb: RgbArray) -> bytes:
        encoded.append(len(rgb))
        return encode(rgb)

    monkeypatch.setattr(jpeg, "jpeg", counted)
    labels = [f"thing {i}" for i in range(6)]
    with MoondreamServer() as server:
        ask(settings(server), photo, *labels)
    assert sorted(asked.label for asked in server.asked) == labels
    assert len({asked.jpeg for asked in server.asked}) == 1
    assert encoded == [512]


@pytest.mark.parametrize("label", ODD, ids=lambda label: ascii(label)[:20])
def test_any_label_arrives_as_it_is(photo: Photo, label: str) -> None:
    with MoondreamServer(lambda label: [CUP]) as server:
        (answer,) = ask(settings(server), photo, label)
    assert [asked.label for asked in server.asked] == [label]
    assert len(answer.value) == 1


def test_an_answer_that_drips_is_timed_out_as_a_whole(photo: Photo) -> None:
    """A time-out that starts anew with each byte would wait for ever."""
    error = fails(MoondreamServer(replies=[Reply(text='{"objects": []}' + " " * 200, drip=0.1)]), photo, vlm_timeout=1)
    assert error.reason == "timeout"


def test_a_station_asks_for_no_key_and_costs_nothing(photo: Photo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MOONDREAM_API_KEY")
    with MoondreamServer() as server:
        (answer,) = ask(settings(server), photo, "cup")
    assert server.asked[0].key == ""
    assert answer.usage == Usage(calls=1, usd=0.0)


def test_the_clouds_price_is_not_known(photo: Photo, monkeypatch: pytest.MonkeyPatch) -> None:
    with MoondreamServer(key=KEY) as server:
        monkeypatch.setattr("dataengine.grounders.moondream.MOONDREAM_CLOUD", server.url)
        (answer,) = ask(settings(server), photo, "cup")
    assert answer.usage == Usage(calls=1, usd=None)


@pytest.mark.parametrize("sent", ["", "another-key"])
def test_a_refused_key_stops_the_run(photo: Photo, monkeypatch: pytest.MonkeyPatch, sent: str) -> None:
    monkeypatch.setenv("MOONDREAM_API_KEY", sent)
    error = fails(MoondreamServer(key=KEY), photo)
    assert isinstance(error, KeyRefusedError)
    assert "MOONDREAM_API_KEY" in str(error)


OBJECTS = '{"objects": [%s]}'
FAULTS = [
    (Reply(429, "slow down", {"Retry-After": "7"}), "rate_limited", "asks to wait 7 s"),
    (Reply(429, "slow down"), "rate_limited", "slow down"),
    (Reply(500, "oh no"), "server_error", "answered 500: oh no"),
    (Reply(502, "<html>\n<h1>Bad gateway</h1>\n</html>"), "server_error", "Bad gateway"),
    (Reply(hang=5), "timeout", "did not answer in 0.3 s"),
    (Reply(text='{"objects": [', drop=True), "connection", "broke off"),
    (Reply(text="a cup, I think"), "bad_answer", "Invalid JSON"),
    (Reply(text=""), "bad_answer", "Invalid JSON"),
    (Reply(text='{"request_id": "7"}'), "bad_answer", "objects: Field required"),
    (Reply(text='{"objects": "none"}'), "bad_answer", "objects"),
    (Reply(text=OBJECTS % '{"x_min": 0.1, "y_min": 0, "x_max": 1}'), "bad_answer", "objects.0.y_max"),
    (Reply(text=OBJECTS % '{"x_min": NaN, "y_min": 0, "x_max": 1, "y_max": 1}'), "bad_answer", "objects.0.x_min"),
    (Reply(400, '{"error": {"message": "image too odd"}}'), "request_refused", "image too odd"),
    (Reply(302, "", {"Location": "/elsewhere"}), "request_refused", "answered 302"),
]


@pytest.mark.parametrize(("reply", "reason", "told"), FAULTS, ids=lambda value: value if isinstance(value, str) else "")
def test_what_each_failure_becomes(photo: Photo, reply: Reply, reason: str, told: str) -> None:
    server = MoondreamServer(replies=[reply])
    error = fails(server, photo, vlm_timeout=0.3 if reply.hang else 5)
    assert isinstance(error, StageError)
    assert (error.reason, error.retryable) == (reason, reason not in ("bad_answer", "request_refused"))
    assert told in str(error)
    assert len(server.asked) == 1


def test_an_answer_that_cannot_be_used_was_a_call_all_the_same(photo: Photo) -> None:
    usage = fails(MoondreamServer(replies=[Reply(text="{}")]), photo).usage
    assert usage is not None
    assert usage.calls == 1


def test_nobody_there(photo: Photo) -> None:
    server = MoondreamServer()
    with server:
        chosen = settings(server)
    with pytest.raises(StageError, match="--moondream_url") as caught:
        ask(chosen, photo, "cup")
    assert caught.value.reason == "connection"


def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The waits between tries from now on, none of which is waited."""
    waited: list[float] = []

    async def sleep(seconds: float) -> None:
        waited.append(seconds)

    monkeypatch.setattr(retry, "sleep", sleep)
    return waited


def test_what_may_pass_is_tried_again_after_the_wait_asked_for(photo: Photo, monkeypatch: pytest.MonkeyPatch) -> None:
    waited = waits(monkeypatch)
    faults = [Reply(429, "", {"Retry-After": "7"}), Reply(503), Reply(text="", drop=True)]
    with MoondreamServer(lambda label: [CUP], faults) as server:
        (answer,) = ask(settings(server, retry_seconds=60), photo, "cup")
    assert len(server.asked) == 4
    assert len(waited) == 3
    assert waited[0] == 7
    assert len(answer.value) == 1


@pytest.mark.parametrize("reply", [Reply(400), Reply(text="{}")])
def test_what_will_not_pass_is_not_tried_again(photo: Photo, monkeypatch: pytest.MonkeyPatch, reply: Reply) -> None:
    waited = waits(monkeypatch)
    server = MoondreamServer(replies=[reply])
    fails(server, photo, retry_seconds=60)
    assert waited == []
    assert len(server.asked) == 1


def test_a_wrong_path_is_told(photo: Photo) -> None:
    server = MoondreamServer()
    error = fails(server, photo, moondream_url=server.url + "/v2")
    assert "no such endpoint: /v1/v2/detect" in str(error)


@pytest.mark.parametrize("url", ["localhost:2020", "http://", "ftp://here/v1", "http://[::1"])
def test_an_address_that_is_none(url: str) -> None:
    with pytest.raises(UsageError, match="--moondream_url"):
        MoondreamGrounder(load_settings({"preset": "offline", "moondream_url": url}))


def test_one_grounder_serves_one_event_loop_after_another(photo: Photo) -> None:
    with MoondreamServer() as server:
        grounder = MoondreamGrounder(settings(server))

        async def main() -> Sequence[Detection]:
            async with grounder:
                return (await grounder.ground(photo, DescribedRegion(label="cup", boxes=[]))).value

        assert asyncio.run(main()) == asyncio.run(main())


def test_the_version_changes_with_the_service_and_the_picture_it_sees() -> None:
    made = [
        MoondreamGrounder(load_settings({"preset": "offline", **flags})).version
        for flags in ({}, {"moondream_url": "http://localhost:2020/v1"}, {"vlm_side": 512})
    ]
    assert len(set(made)) == 3
