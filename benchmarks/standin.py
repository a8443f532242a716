"""A stand-in for Gemini's `generateContent`, in a process of its own.

    python -m benchmarks.standin --seconds 2.0 --regions 7 --prompts 3 --rate_limited 0.1 --broken_json 0.05

What it answers keeps every rule of the prompts, and depends on nothing but what is asked: the instruction, the texts
and pictures of the first turn, and the schema. So two runs over the same photos get the same answers, in whatever
order and whatever went wrong before. What goes wrong is drawn from a seed, the content and the number of times that
content was asked, so one that fails is not bound to fail again; only a photo that is blocked is blocked for ever, at a
question that its content chooses.

`GET /stats` says what it saw (`Stats`). Tokens differ by content; what it would charge is counted when an answer is
ready, also where nobody waits for it any more, as a service does.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import json
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Self

QUESTIONS = ("describe", "verify", "compose", "align", "negatives", "refute")
MODEL = "gemini-2.5-flash"
USD_PER_MILLION = (0.30, 2.50)  # its list price in November 2026: input, output; thinking is output
LONGEST_BODY = 1 << 23  # bytes that the reader buffers; a question has some 300 kB
JUST_SENT = 0.1  # seconds in which an answer may not have reached the engine's journal yet
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "brown", "black", "white", "grey", "pink", "beige")
THINGS = ("chair", "table", "lamp", "bottle", "box", "plant", "book", "cup", "bag", "bench", "door", "wheel", "basket")


@dataclass(frozen=True)
class Plan:
    """How it answers.

    Attributes:
        seconds: from a question to its answer.
        regions, prompts: of a photo; of a concept (negatives likewise).
        rate_limited, server_error, hang, dropped, broken_json: shares of the questions that meet this instead.
        blocked: share of the photos that are blocked, each at one of its questions.
        wait: seconds that a 429 asks for.
        seed: of what goes wrong.
    """

    seconds: float = 0.0
    regions: int = 7
    prompts: int = 3
    rate_limited: float = 0.0
    server_error: float = 0.0
    hang: float = 0.0
    dropped: float = 0.0
    broken_json: float = 0.0
    blocked: float = 0.0
    wait: float = 1.0
    seed: int = 0

    def fault(self, content: str, times: int) -> str:
        """What goes wrong with a content asked for the n-th time; empty where nothing does."""
        left = share(f"{self.seed} {content} {times}")
        for kind in ("rate_limited", "server_error", "hang", "dropped", "broken_json"):
            left -= getattr(self, kind)
            if left < 0:
                return kind
        return ""


@dataclass
class Stats:
    """What the stand-in saw.

    Attributes:
        asked: requests by question; `answered`: good answers by question; `contents`: different questions asked.
        faults: by kind.
        paid: answers charged for, good or broken; `again`: good ones to a content that had one before.
        unheard: answers to a connection that was gone.
        in_flight, most_in_flight: requests read whole and not answered, now and at most.
        just_sent: paid answers of the last `JUST_SENT` seconds.
        busy_seconds: in_flight summed over time; over `ended - began` it is the mean.
        began, ended: when the first request came and the last answer went, on a clock of its own.
        input_tokens, output_tokens, usd: charged.
    """

    asked: Counter[str] = field(default_factory=Counter)
    answered: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    contents: int = 0
    paid: int = 0
    again: int = 0
    unheard: int = 0
    in_flight: int = 0
    most_in_flight: int = 0
    just_sent: int = 0
    busy_seconds: float = 0.0
    began: float = 0.0
    ended: float = 0.0
    input_tokens: int = 0
    output_tokens: int = 0
    usd: float = 0.0

    @property
    def questions(self) -> int:
        """Requests, of all questions."""
        return sum(self.asked.values())

    @property
    def good(self) -> int:
        """Good answers, of all questions."""
        return sum(self.answered.values())

    @property
    def mean_in_flight(self) -> float:
        return self.busy_seconds / max(1e-9, self.ended - self.began)


@dataclass(frozen=True)
class Asked:
    """A request, as far as its answer depends on it.

    Attributes:
        content: digest of all that the answer depends on.
        photo: digest of the first picture.
        families: the concept's, where the schema names them.
        choices: of a region's masks.
        boxes: whether labels come with boxes.
    """

    question: str
    content: str
    photo: str
    families: tuple[str, ...]
    choices: tuple[str, ...]
    boxes: bool


def read(body: bytes) -> Asked:
    """A request's body; pictures stay as they are, so that reading costs about a millisecond.

    A question that is asked again has the same first turn and last part of the instruction; more stands around them.
    """
    sent = json.loads(body)
    parts = sent["contents"][0]["parts"]
    schema = sent["generationConfig"]["responseJsonSchema"]
    pictures = [part["inlineData"]["data"] for part in parts if "inlineData" in part]
    texts = [part["text"] for part in sent["systemInstruction"]["parts"][-1:] + parts if "text" in part]
    digest = hashlib.sha256(json.dumps([texts, schema], sort_keys=True).encode())
    for picture in pictures:
        digest.update(picture.encode())
    entry: dict[str, Any] = next((s for name, s in schema.get("$defs", {}).items() if name != "Box"), {})
    fields = {**schema["properties"], **entry.get("properties", {})}
    return Asked(
        question=_question(fields, len(pictures)),
        content=digest.hexdigest()[:24],
        photo=hashlib.sha256(pictures[0].encode()).hexdigest()[:24],
        families=tuple(fields.get("concept_family", {}).get("enum", ())),
        choices=tuple(fields.get("choice", {}).get("enum", ())),
        boxes="boxes" in fields,
    )


def _question(fields: dict[str, Any], pictures: int) -> str:
    if "label" in fields:
        return "describe"
    if "choice" in fields:
        return "verify"
    if "prompts" in fields:
        return "negatives" if "strategy" in fields else "compose"
    return "align" if pictures == 2 else "refute"


def number(text: str) -> int:
    """A number from 0 to 2^64 - 1 that a text always has."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def share(text: str) -> float:
    """A number in [0, 1) that a text always has."""
    return number(text) / 2**64


def one_of(names: Sequence[str], text: str) -> str:
    """The one of the names that a text always has."""
    return names[number(text) % len(names)]


# The answers.


def answer(asked: Asked, plan: Plan) -> dict[str, object]:
    """An answer that keeps every rule."""
    return _ANSWERS[asked.question](asked, plan)


def _describe(asked: Asked, plan: Plan) -> dict[str, object]:
    columns = max(1, round(plan.regions**0.5 + 0.4))
    rows = -(-plan.regions // columns)
    regions: list[dict[str, object]] = []
    for index in range(plan.regions):
        row, column = divmod(index, columns)
        top, left, bottom, right = (0.04 + 0.2 * share(f"{asked.content} {index} {side}") for side in "tlbr")
        y = [row + top, row + 1 - bottom]
        x = [column + left, column + 1 - right]
        box = [y[0] / rows, x[0] / columns, y[1] / rows, x[1] / columns]
        thing = f"{one_of(COLOURS, f'{asked.content} {index}')} {THINGS[index % len(THINGS)]}"
        region: dict[str, object] = {"label": f"{thing} in row {'abcdefgh'[row % 8]}, {column} from the left"}
        if asked.boxes:
            region["boxes"] = [{"box_2d": [round(1000 * side) for side in box]}]
        regions.append(region)
    return {"regions": regions}


def _verify(asked: Asked, plan: Plan) -> dict[str, object]:
    kept = [choice for choice in asked.choices if choice != "neither"]
    said = f"{one_of(COLOURS, asked.content)} {one_of(THINGS, asked.content)} as it is seen, {asked.content[:6]}"
    choice = one_of(kept, asked.content)
    return {"reason": "The red area covers what the label names.", "description": said, "choice": choice}


def _compose(asked: Asked, plan: Plan) -> dict[str, object]:
    def entry(index: int) -> dict[str, object]:
        text = f"Segment the {one_of(COLOURS, f'{asked.content} {index}')} {_family(asked, index).replace('_', ' ')}"
        first = number(f"{asked.content} of {index}") % plan.regions
        meant = {first, (first + 2) % plan.regions} if index % 2 and plan.regions > 2 else {first}
        regions = {"candidates": list(range(plan.regions)), "satisfying": sorted(meant)}
        return {"prompt": text, "concept_family": _family(asked, index), **regions}

    return {"prompts": [entry(index) for index in range(plan.prompts)]}


def _negatives(asked: Asked, plan: Plan) -> dict[str, object]:
    def entry(index: int) -> dict[str, object]:
        decoy = f"missing {one_of(COLOURS, f'{asked.content} {index}')} {_family(asked, index).replace('_', ' ')}"
        strategy = ("object_level_neighbor", "concept_level_neighbor")[index % 2]
        about = {"concept_family": _family(asked, index), "target_decoy": decoy}
        return {"prompt": f"Find the {decoy}", "strategy": strategy, **about}

    return {"prompts": [entry(index) for index in range(plan.prompts)]}


def _family(asked: Asked, index: int) -> str:
    """A family that only this concept has, another one for each of its prompts."""
    return asked.families[index % len(asked.families)]


def _judge(asked: Asked, plan: Plan) -> dict[str, object]:
    accept = share(asked.content) < 0.8
    return {"reason": "It fits." if accept else "It does not fit.", "unmasked_match": False, "accept": accept}


_ANSWERS = {
    "describe": _describe,
    "verify": _verify,
    "compose": _compose,
    "align": _judge,
    "negatives": _negatives,
    "refute": _judge,
}


def tokens(asked: Asked) -> tuple[int, int, int]:
    """Input, output and thinking tokens of an answer."""
    spread = [share(f"{asked.content} {kind}") for kind in ("in", "out", "thought")]
    return 1000 + int(2000 * spread[0]), 20 + int(180 * spread[1]), int(400 * spread[2])


def wrapped(text: str, asked: Asked) -> dict[str, object]:
    """Gemini's body of an answer."""
    sent, said, thought = tokens(asked)
    usage = {"promptTokenCount": sent, "candidatesTokenCount": said, "thoughtsTokenCount": thought}
    usage["totalTokenCount"] = sent + said + thought
    candidate = {"finishReason": "STOP", "index": 0, "content": {"role": "model", "parts": [{"text": text}]}}
    return {"candidates": [candidate], "usageMetadata": usage, "modelVersion": MODEL}


# The server.


class Server:
    """One plan's server, and what it has seen."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._stats = Stats()
        self._times: Counter[str] = Counter()
        self._answered: set[str] = set()
        self._sent: list[float] = []
        self._changed = time.monotonic()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one connection's requests, one after another."""
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                length = head.partition(b"\r\ncontent-length:")[2].partition(b"\r\n")[0]
                body = await reader.readexactly(int(length or 0))
                if head.startswith(b"get /stats"):
                    await send(writer, 200, self.stats())
                elif not await self._one(body, reader, writer):
                    break
        writer.close()

    async def _one(self, body: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer a request; whether the connection stays."""
        asked = read(body)
        async with self._counted(asked):
            kind = self._fault(asked)
            if kind:
                self._stats.faults[kind] += 1
            if kind == "hang":
                await reader.read(1)  # until the other side goes
                return False
            await asyncio.sleep(0 if kind in ("rate_limited", "server_error") else self.plan.seconds)
            if kind == "dropped":
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 900\r\n\r\n{")
                return False
            status, said, headers = self._reply(asked, kind)
            self._stats.unheard += writer.is_closing() or reader.at_eof()
        await send(writer, status, said, headers)
        return True

    @contextlib.asynccontextmanager
    async def _counted(self, asked: Asked) -> AsyncIterator[None]:
        stats = self._stats
        stats.asked[asked.question] += 1
        stats.began = stats.began or time.monotonic()
        self._moved(1)
        try:
            yield
        finally:
            self._moved(-1)
            stats.ended = time.monotonic()

    def _moved(self, by: int) -> None:
        now, stats = time.monotonic(), self._stats
        stats.busy_seconds += stats.in_flight * (now - self._changed)
        self._changed = now
        stats.in_flight += by
        stats.most_in_flight = max(stats.most_in_flight, stats.in_flight)

    def _fault(self, asked: Asked) -> str:
        fate = f"{self.plan.seed} {asked.photo}"
        if share(fate) < self.plan.blocked and asked.question == one_of(QUESTIONS[:4], f"{fate} at"):
            return "blocked"
        self._times[asked.content] += 1
        return self.plan.fault(asked.content, self._times[asked.content])

    def _reply(self, asked: Asked, kind: str) -> tuple[int, object, dict[str, str]]:
        """Status, body and headers; what is charged is counted."""
        if kind == "rate_limited":
            retry = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": f"{self.plan.wait:g}s"}
            return 429, _error(429, "RESOURCE_EXHAUSTED", retry), {"retry-after": f"{self.plan.wait:g}"}
        if kind == "server_error":
            return 500, _error(500, "INTERNAL"), {}
        if kind == "blocked":
            return 200, {"promptFeedback": {"blockReason": "SAFETY"}, "modelVersion": MODEL}, {}
        text = json.dumps(answer(asked, self.plan))
        self._charge(asked)
        if kind == "broken_json":
            return 200, wrapped(text[: len(text) // 2], asked), {}
        self._stats.answered[asked.question] += 1
        self._stats.again += asked.content in self._answered
        self._answered.add(asked.content)
        return 200, wrapped(text, asked), {}

    def _charge(self, asked: Asked) -> None:
        sent, said, thought = tokens(asked)
        self._stats.paid += 1
        now = time.monotonic()
        self._sent = [*(sent for sent in self._sent if sent > now - JUST_SENT), now]
        self._stats.input_tokens += sent
        self._stats.output_tokens += said + thought
        self._stats.usd += (sent * USD_PER_MILLION[0] + (said + thought) * USD_PER_MILLION[1]) / 1e6

    def stats(self) -> dict[str, object]:
        """The counters as they are now."""
        self._moved(0)
        self._stats.contents = len(self._times)
        self._stats.just_sent = sum(sent > time.monotonic() - JUST_SENT for sent in self._sent)
        return dict(vars(self._stats))


def _error(code: int, status: str, *details: object) -> dict[str, object]:
    return {"error": {"code": code, "message": "the stand-in says no", "status": status, "details": details}}


async def send(writer: asyncio.StreamWriter, status: int, said: object, headers: dict[str, str] | None = None) -> None:
    """Send a JSON body."""
    data = json.dumps(said).encode()
    lines = [f"HTTP/1.1 {status} X", "content-type: application/json", f"content-length: {len(data)}"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + data)
    await writer.drain()


async def serve(plan: Plan, port: int) -> None:
    """Print the server's URL and serve until the process is ended."""
    server = await asyncio.start_server(Server(plan).serve, "127.0.0.1", port, limit=LONGEST_BODY, backlog=512)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


# Used from a benchmark.


class StandIn:
    """A stand-in's process, there while entered (`with`).

    Args:
        port: where it listens; 0 is a free one.

    Attributes:
        url: for `--vlm_base_url`; `port` is where it listens.
    """

    url: str
    port: int

    def __init__(self, plan: Plan, port: int = 0) -> None:
        self._plan, self._port = plan, port

    def __enter__(self) -> Self:
        flags = [f"--{name}={value}" for name, value in asdict(self._plan).items()]
        command = [sys.executable, "-m", "benchmarks.standin", f"--port={self._port}", *flags]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.url = self._process.stdout.readline().strip()
        self.port = int(self.url.rpartition(":")[2])
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.communicate()

    def stats(self) -> Stats:
        """Its counters now."""
        with urllib.request.urlopen(f"{self.url}/stats", timeout=30) as said:
            counters = json.load(said)
        for name in ("asked", "answered", "faults"):
            counters[name] = Counter(counters[name])
        return Stats(**counters)


@contextlib.contextmanager
def standing_in(port: int = 0, **plan: Any) -> Iterator[StandIn]:
    """A stand-in with these attributes of a `Plan`."""
    with StandIn(Plan(**plan), port) as server:
        yield server


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--port", type=int, default=0, help="default: a free one")
    for name, value in asdict(Plan()).items():
        parser.add_argument(f"--{name}", type=type(value), default=value, help="default: %(default)s")
    options = vars(parser.parse_args(arguments))
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve(port=options.pop("port"), plan=Plan(**options)))


if __name__ == "__main__":
    main()
