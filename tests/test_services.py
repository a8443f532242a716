"""The command line against local servers that speak the real protocols: what is asked, and what each answer becomes."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dataengine.cli import main
from dataengine.records import CONCEPTS, Failure, RunRecord, Summary
from tests.photos import coffee
from tests.standins.moondream_server import MoondreamServer
from tests.standins.vlm_server import KEY, Asked, Reply, VlmServer, sensible

GEMINI, OPENAI = "google:gemini-flash-latest", "openai:gpt-4o"
ONE_IMAGE = {"describe": 1, "verify": 2, "compose": 5, "align": 10, "negatives": 5, "refute": 5}


@pytest.fixture(autouse=True)
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GOOGLE_API_KEY", "OPENAI_API_KEY", "MOONDREAM_API_KEY"):
        monkeypatch.setenv(name, KEY)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    coffee(300).save(folder / "coffee.png")
    return folder


@pytest.fixture
def run(tmp_path: Path, photos: Path, capfd: pytest.CaptureFixture[str]) -> Iterator[Callable[..., tuple[int, str]]]:
    """Runs the command with a server; its exit code and all it printed."""

    def command(server: VlmServer, *more: str, vlm: str = GEMINI) -> tuple[int, str]:
        url = server.url + ("/v1" if vlm == OPENAI else "")
        parts = ["--annotator", "vlm", "--segmenter", "classical", "--vlm", vlm, "--vlm_base_url", url]
        bounds = ["--retry_seconds", "0", "--vlm_timeout", "20"]
        code = main(["run", "-i", str(photos), "-o", str(tmp_path / "runs"), *parts, *bounds, *more])
        printed = capfd.readouterr()
        return code, printed.out + printed.err

    yield command


def folder(tmp_path: Path, name: str = "coffee") -> Path:
    return tmp_path / "runs" / f"out_region_refine_{name}"


def record(tmp_path: Path) -> RunRecord:
    return RunRecord.model_validate_json((folder(tmp_path) / "run.json").read_bytes())


def summary(tmp_path: Path, concept: str = "entities") -> Summary:
    return Summary.model_validate_json((folder(tmp_path) / concept / "summary.json").read_bytes())


def failures(tmp_path: Path) -> list[Failure]:
    file = tmp_path / "runs" / "failures.jsonl"
    return [Failure.model_validate_json(line) for line in file.read_text().splitlines()] if file.exists() else []


def asked(server: VlmServer) -> dict[str, int]:
    return dict(Counter(request.question for request in server.asked))


# What is asked, and the whole run folder made of the answers.


@pytest.mark.parametrize("vlm", [GEMINI, OPENAI])
def test_a_complete_run_folder_from_a_photo(tmp_path: Path, photos: Path, run: Any, vlm: str) -> None:
    """The server checks each request as the service would: key, schema, JPEGs of at most 768 px, temperature."""
    coffee(1200).save(photos / "coffee.png")
    with VlmServer() as server:
        code, printed = run(server, vlm=vlm)
    assert (code, server.refused) == (0, []), printed
    assert asked(server) == ONE_IMAGE
    assert {size for request in server.asked for size in request.images if size[1] <= 512} == {(768, 512)}
    assert {request.temperature for request in server.asked} == {0.7}
    assert all(request.instruction for request in server.asked)
    assert len({request.jpegs[0] for request in server.asked}) == 1  # the photo, encoded once
    made = record(tmp_path)
    assert made.complete
    assert made.parts["annotator"].detail["model"] == vlm
    assert len(made.prompt_digests) == len(set(made.prompt_digests)) == 16
    for concept in CONCEPTS:
        verdicts = [entry.verdict for entry in summary(tmp_path, concept).prompt_verifications]
        assert verdicts == ["ACCEPT", "ACCEPT"]
    assert KEY not in printed + "".join(p.read_text() for p in folder(tmp_path).rglob("*.json*"))
    assert "28 paid, 28,000 tokens in, 1,960 out, $" in " ".join(printed.replace("│", " ").split())


def test_moondream_finds_the_boxes_and_is_the_second_judge_of_negatives(tmp_path: Path, run: Any) -> None:
    """Its boxes are cut; the description is asked for without any; a negative that it finds is not paid for."""

    def found(label: str) -> list[tuple[float, float, float, float]]:
        return [] if "absent" in label and "physics" not in label else [(0.1, 0.2, 0.45, 0.8)]

    with VlmServer() as server, MoondreamServer(found, key=KEY) as moondream:
        code, printed = run(server, "--grounder", "moondream", "--moondream_url", moondream.url)
        assert (code, server.refused, moondream.refused) == (0, [], []), printed
        asked_of_moondream = sorted(request.label for request in moondream.asked)
        assert run(server, "--grounder", "moondream", "--moondream_url", moondream.url)[0] == 0
        assert len(moondream.asked) == len(asked_of_moondream)  # kept, as every answer
    absent = [f"absent {concept} thing" for concept in sorted(CONCEPTS)]
    assert asked_of_moondream == [*absent, "thing on the left", "thing on the right"]
    assert {request.size for request in moondream.asked} == {(300, 200)}
    assert "boxes" not in str(server.of("describe")[0].schema)
    assert asked(server) == {**ONE_IMAGE, "refute": 4}
    made = record(tmp_path)
    assert (made.complete, made.parts["grounder"].name) == (True, "moondream")
    verdicts = json.loads((folder(tmp_path) / "negatives" / "physics.json").read_text())
    assert verdicts[0]["verdict"] == "REJECT"
    assert verdicts[0]["reason"] == "the grounder moondream found 1 of 'absent physics thing'"


def test_running_again_asks_nothing(tmp_path: Path, run: Any) -> None:
    with VlmServer() as server:
        run(server)
        before = len(server.asked)
        code, printed = run(server)
        assert (code, len(server.asked)) == (0, before)
        assert "1 done before" in printed


def test_a_change_of_one_question_asks_just_that_and_what_depends_on_it(tmp_path: Path, run: Any) -> None:
    with VlmServer() as server:
        run(server)
        server.asked.clear()
        run(server, "--temperature", "align=0")
        assert asked(server) == {"align": 10}
        server.asked.clear()
        run(server, "--temperature", "align=0", "--no-exhaustive", "--concepts", "physics", "--no-negatives")
        assert asked(server) == {"align": 2}


def test_what_fits_something_unmasked_is_rejected_unless_told_otherwise(tmp_path: Path, run: Any) -> None:
    def another(request: Asked) -> object:
        seen = {"reason": "another stands behind", "unmasked_match": True, "accept": True}
        return seen if request.question == "align" else sensible(request)

    with VlmServer(another) as server:
        run(server, "--concepts", "entities", "--no-negatives")
        assert {entry.verdict for entry in summary(tmp_path).prompt_verifications} == {"REJECT"}
        assert "another stands behind" in summary(tmp_path).prompt_verifications[0].reason
        run(server, "--concepts", "entities", "--no-negatives", "--no-exhaustive")
        assert {entry.verdict for entry in summary(tmp_path).prompt_verifications} == {"ACCEPT"}


def test_neither_rejects_a_region(tmp_path: Path, run: Any) -> None:
    """The published engine keeps the refined mask where both are called bad."""

    def bad(request: Asked) -> object:
        if request.question == "verify":
            return {"reason": "it spills over", "description": "", "choice": "neither"}
        return sensible(request)

    with VlmServer(bad) as server:
        code, printed = run(server)
    assert code == 0
    assert asked(server) == {"describe": 1, "verify": 2}
    assert [entry.reason for entry in summary(tmp_path).results] == ["it spills over"] * 2
    assert "None of the 2 described regions was accepted" in printed


# What each fault becomes: counted with its reason, retried by the next run, and never a reject.

TRANSIENT = [
    ("429", [Reply(429, reason="RESOURCE_EXHAUSTED", headers={"retry-after": "9"})], "rate_limited"),
    ("500", [Reply(500)], "server_error"),
    ("hang", [Reply(text="{}", hang=30)], "timeout"),
    ("dropped connection", [Reply(text="{}" * 99, drop=True)], "connection"),
    ("blocked prompt", [Reply(blocked="PROHIBITED_CONTENT")], "blocked"),
    ("SAFETY", [Reply(finish="SAFETY")], "blocked"),
    ("cut answer", [Reply(text='{"reason": "it f', finish="MAX_TOKENS")], "cut_off"),
    ("not JSON", [Reply(text="It fits well.")] * 4, "bad_answer"),
    ("wrong schema", [Reply(text='{"verdict": "yes"}')] * 4, "bad_answer"),
]


@pytest.mark.parametrize(
    ("question", "replies", "reason"),
    [
        *((question, [Reply(500)], "server_error") for question in ONE_IMAGE),
        ("compose", [Reply(text="It fits well.")] * 10, "bad_answer"),  # of each concept twice
    ],
)
def test_wherever_a_call_fails_the_image_is_failed_and_finished_by_the_next_run(
    tmp_path: Path, run: Any, question: str, replies: list[Reply], reason: str
) -> None:
    with VlmServer(replies={question: replies}) as server:
        assert run(server, "--concurrency", "1")[0] == 1
        (failure,) = failures(tmp_path)
        assert failure.reason == reason
        assert not record(tmp_path).complete
        assert run(server)[0] == 0
        answered = len(server.asked) - len(replies)
    assert answered == sum(ONE_IMAGE.values())  # nothing that was answered is asked twice
    assert (failures(tmp_path), record(tmp_path).complete) == ([], True)
    verdicts = [entry.verdict for c in CONCEPTS for entry in summary(tmp_path, c).prompt_verifications]
    assert verdicts == ["ACCEPT"] * 10


@pytest.mark.parametrize(("replies", "reason"), [t[1:] for t in TRANSIENT], ids=[t[0] for t in TRANSIENT])
def test_a_fault_is_counted_with_its_reason_and_is_no_reject(
    tmp_path: Path, photos: Path, run: Any, replies: list[Reply], reason: str
) -> None:
    (photos / "second.png").write_bytes((photos / "coffee.png").read_bytes() + b"\0")  # another file, also good
    with VlmServer(replies={"verify": replies}) as server:
        code, printed = run(server, "--vlm_timeout", "2", "--concurrency", "1", "--concepts", "entities")
    assert code == 1
    (failure,) = failures(tmp_path)
    assert (failure.stage, failure.reason) == ("verify", reason)
    assert "1 done, 1 failed" in printed
    assert f"{reason} 1" in printed
    assert failure.message in printed
    bad = folder(tmp_path, Path(failure.image).stem)
    assert not list(bad.glob("*/summary.json"))  # no verdict was made up
    assert not json.loads((bad / "run.json").read_text())["complete"]


def test_429_is_waited_for_and_asked_again(tmp_path: Path, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []

    async def no_sleep(seconds: float) -> None:
        waited.append(seconds)

    monkeypatch.setattr("dataengine.retry.sleep", no_sleep)
    replies = [Reply(429, reason="RESOURCE_EXHAUSTED", headers={"retry-after": "9"})]
    with VlmServer(replies={"verify": replies}) as server:
        code, _ = run(server, "--retry_seconds", "30")
    assert (code, waited, failures(tmp_path)) == (0, [9], [])


def test_what_is_blocked_is_kept_and_asked_again_only_when_told(tmp_path: Path, run: Any, capfd: Any) -> None:
    runs = str(tmp_path / "runs")
    with VlmServer(replies={"describe": [Reply(blocked="PROHIBITED_CONTENT")]}) as server:
        assert run(server)[0] == 1
        code, printed = run(server)
        assert (code, len(server.asked)) == (1, 1)
        assert "blocked 1" in printed
        assert main(["retry", runs, "--reason", "timeout"]) == 2
        assert "--reason timeout: no image failed for it. There are blocked 1" in capfd.readouterr().err
        assert main(["retry", runs, "--reason", "blocked", "--concepts", "spatial"]) == 0
        assert asked(server) == {**ONE_IMAGE, "describe": 2, "compose": 1, "align": 2, "negatives": 1, "refute": 1}
        capfd.readouterr()
        assert main(["retry", runs]) == 0
        assert "No image has failed" in capfd.readouterr().out


def test_retry_wants_a_folder_of_a_run(tmp_path: Path, capfd: Any) -> None:
    assert main(["retry", str(tmp_path / "none")]) == 2
    assert "no run has written here" in capfd.readouterr().err


def test_a_budget_is_kept_and_said(tmp_path: Path, run: Any) -> None:
    """28 calls at $0.000475; each may cost as much as its longest answer."""
    with VlmServer() as server:
        code, printed = run(server, "--budget_usd", "0.036", "--price", "0.3,2.5")
        stopped = len(server.asked)
        assert (code, "stopped: --budget_usd 0.036: $0.0" in printed) == (1, True), printed
        assert 0 < stopped < 28
        assert {request.body["generationConfig"]["maxOutputTokens"] for request in server.asked} == {4096, 12288}
        code, printed = run(server, "--budget_usd", "1")
        assert (code, len(server.asked)) == (0, 28), printed
        assert run(server, "--budget_usd", "0.001")[0] == 0  # nothing is left to pay for


@pytest.mark.parametrize(("price", "said"), [(None, "price of openai:my-llava is unknown"), ("1000,1000", "$29.96")])
def test_a_price_that_is_not_known_can_be_told(tmp_path: Path, run: Any, price: str | None, said: str) -> None:
    with VlmServer() as server:
        more = ["--budget_usd", "100", *(["--price", price] if price else [])]
        code, printed = run(server, *more, "--vlm_base_url", f"{server.url}/v1", vlm="openai:my-llava")
    assert (code, len(server.asked)) == ((0, 28) if price else (2, 0)), printed
    assert said in printed


def test_calls_a_minute(run: Any) -> None:
    """A fifth of a second from one call to the next; what is lost on the way to the server is allowed for."""
    with VlmServer() as server:
        assert run(server, "--rpm", "300", "--concepts", "entities")[0] == 0
    assert max(server.times) - min(server.times) > 0.7 * 0.2 * (len(server.times) - 1)


def test_an_answer_asked_again_is_counted(tmp_path: Path, run: Any) -> None:
    with VlmServer(replies={"compose": [Reply(text="[1, 2")]}) as server:
        code, printed = run(server)
    assert code == 0
    assert "29 paid (1 asked again)" in printed


def test_an_invalid_key_stops_the_run_with_one_line(
    tmp_path: Path, photos: Path, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GOOGLE_API_KEY", "a-wrong-key")
    for i in range(5):
        (photos / f"{i}.png").write_bytes((photos / "coffee.png").read_bytes())
    with VlmServer() as server:
        code, printed = run(server, "--concurrency", "1")
    assert (code, len(server.asked), len(server.refused)) == (1, 0, 1)
    assert [line for line in printed.splitlines() if line.strip()] == [
        "error: google:gemini-flash-latest refuses the key (API key not valid. Please pass a valid API key.). "
        "Check GOOGLE_API_KEY, then run again"
    ]


def answering(question: str, answer: object) -> Callable[[Asked], object]:
    return lambda request: answer if request.question == question else sensible(request)


def test_an_empty_list_of_regions_is_an_image_without_any(tmp_path: Path, run: Any) -> None:
    with VlmServer(answering("describe", {"regions": []})) as server:
        code, printed = run(server)
    assert (code, asked(server)) == (0, {"describe": 1})
    assert record(tmp_path).note == "No region was described in this image, so there are no prompts."
    assert record(tmp_path).note in printed
    assert summary(tmp_path).conversational_prompts is None


def test_an_empty_list_of_prompts_is_a_concept_without_any(tmp_path: Path, run: Any) -> None:
    with VlmServer(answering("compose", {"prompts": []})) as server:
        code, printed = run(server)
    assert code == 0
    assert summary(tmp_path).prompt_verifications == []
    assert "0 of 0 accepted" in printed


def test_a_region_index_out_of_range_is_refused_by_rule_before_it_is_paid_for(tmp_path: Path, run: Any) -> None:
    entry = {"concept_family": "instances_and_agents", "candidates": [0, 7], "satisfying": [7]}
    good = {**entry, "prompt": "Find the cup", "candidates": [0, 1], "satisfying": [0]}
    odd = {"prompts": [{**entry, "prompt": "Segment the spoon"}, good]}
    with VlmServer(answering("compose", odd)) as server:
        code, printed = run(server, "--concepts", "entities", "--no-negatives")
    first, second = summary(tmp_path).prompt_verifications
    assert (code, asked(server)["align"]) == (0, 1)
    assert (first.verdict, second.verdict) == ("REJECT", "ACCEPT")
    assert first.reason.startswith("rule indices: they must be of regions 0..1")
    assert "indices 1" in printed


def test_a_label_of_5000_characters_is_a_region_rejected_with_its_reason(tmp_path: Path, run: Any) -> None:
    regions: Any = sensible(Asked("", "", "", [], [], {"properties": {"regions": {}}}, 0, {}, []))
    regions["regions"].append({"label": "very " * 1000, "boxes": [{"box_2d": [0, 0, 500, 500]}]})
    with VlmServer(answering("describe", regions)) as server:
        code, printed = run(server, "--concepts", "entities")
    assert (code, asked(server)["verify"]) == (0, 2)
    last = summary(tmp_path).results[-1]
    assert (last.reason, last.output) == ("rule label: it has 4,999 characters, 300 are the most", None)
    assert "label 1" in printed
    assert max(len(path.name) for path in folder(tmp_path).rglob("*")) < 80


def test_a_label_with_path_separators_stays_inside_its_folder(tmp_path: Path, run: Any) -> None:
    label = "../../../cup/\\..\\C:\\mug"
    box = {"box_2d": [200, 100, 800, 450]}
    regions = {"regions": [{"label": label, "boxes": [box]}, {"label": "spoon", "boxes": [box]}]}
    before = sorted(tmp_path.iterdir())
    with VlmServer(answering("describe", regions)) as server:
        code, _ = run(server)
    assert code == 0
    assert {*tmp_path.iterdir()} - {*before} == {tmp_path / "runs"}
    assert (folder(tmp_path) / "accepted_regions" / "000_cup_c_mug.png").is_file()
    assert summary(tmp_path).results[0].label == label
