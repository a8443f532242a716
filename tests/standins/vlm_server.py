"""A local server that speaks Gemini's, OpenAI's and Anthropic's protocols, and refuses what they would."""

from __future__ import annotations

import base64
import io
import json
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from dataengine.records import CONCEPT_FAMILIES
from tests.standins.serving import LocalServer, Sent

KEY = "the-right-key"
MOST_PIXELS = 768


@dataclass(frozen=True)
class Asked:
    """One request, in the terms all protocols share."""

    protocol: str
    model: str
    instruction: str
    texts: list[str]
    images: list[tuple[int, int]]
    schema: dict[str, Any]
    temperature: float | None
    body: dict[str, Any]
    jpegs: list[bytes] = field(repr=False)

    @property
    def question(self) -> str:
        """Which of the annotator's questions this is, by the shape it wants."""
        fields = self.schema["properties"]
        if "regions" in fields:
            return "describe"
        if "choice" in fields:
            return "verify"
        if "prompts" in fields:
            return "negatives" if "strategy" in self.entry["properties"] else "compose"
        return "align" if len(self.images) == 2 else "refute"

    @property
    def entry(self) -> dict[str, Any]:
        """The schema of one entry of `prompts` or `regions`."""
        items = next(iter(self.schema["properties"].values()))["items"]
        name = items.get("$ref", "").rpartition("/")[2]
        found: dict[str, Any] = self.schema["$defs"][name] if name else items
        return found

    @property
    def concept(self) -> str:
        """The concept whose families the schema names."""
        families = self.entry["properties"]["concept_family"]["enum"]
        return next(c for c, known in CONCEPT_FAMILIES.items() if list(known) == families)


@dataclass(frozen=True)
class Reply:
    """What the server does with a request instead of answering it well.

    Attributes:
        status: of HTTP; 200 with `text` is an answer of the model's.
        text: the model's own words.
        message: the service's, where status is an error.
        finish: Gemini's finishReason.
        blocked: Gemini's promptFeedback.blockReason.
        hang: seconds to wait before it answers.
        drop: close the connection in the middle.
    """

    status: int = 200
    text: str | None = None
    message: str = "no"
    reason: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    finish: str = "STOP"
    blocked: str = ""
    hang: float = 0
    drop: bool = False


Answerer = Callable[[Asked], object]


def sensible(asked: Asked) -> object:
    """An answer that keeps every rule: two regions, all masks good, two prompts and a negative a concept."""
    if asked.question == "describe":
        left = {"label": "thing on the left", "boxes": [{"box_2d": [200, 100, 800, 450]}]}
        right = {"label": "thing on the right", "boxes": [{"box_2d": [250, 550, 900, 950]}]}
        return {"regions": [left, right]}
    if asked.question == "verify":
        return {"reason": "it fits", "description": f"what is there, {len(asked.images)} pictures", "choice": "initial"}
    if asked.question == "compose":
        family = CONCEPT_FAMILIES[asked.concept][0]
        entry = {"concept_family": family, "candidates": [0, 1]}
        first = {**entry, "prompt": f"Segment the first {asked.concept} thing", "satisfying": [0]}
        return {"prompts": [first, {**entry, "prompt": f"Find the other {asked.concept} thing", "satisfying": [1]}]}
    if asked.question == "negatives":
        return {
            "prompts": [
                {
                    "prompt": f"Segment the absent {asked.concept} thing",
                    "strategy": "object_level_neighbor",
                    "concept_family": CONCEPT_FAMILIES[asked.concept][0],
                    "target_decoy": f"absent {asked.concept} thing",
                }
            ]
        }
    return {"reason": "it fits", "unmasked_match": False, "accept": True}


class VlmServer(LocalServer):
    """Serves while entered (`with`).

    Attributes:
        replies: by question, what the next requests get instead of an answer, one after another.
        asked: every request it took for well-formed.
        refused: why it refused the others.
    """

    def __init__(self, answer: Answerer = sensible, replies: Mapping[str, list[Reply]] | None = None) -> None:
        super().__init__()
        self.answer = answer
        self.replies = {question: list(some) for question, some in (replies or {}).items()}
        self.asked: list[Asked] = []
        self.refused: list[str] = []
        self.times: list[float] = []  # when they came, `time.monotonic`

    @property
    def url(self) -> str:
        return self.root

    def of(self, question: str) -> list[Asked]:
        """The requests that asked one question."""
        return [asked for asked in self.asked if asked.question == question]

    def take(self, asked: Asked) -> Reply:
        """The reply to a well-formed request."""
        with self.lock:
            self.asked.append(asked)
            self.times.append(time.monotonic())
            waiting = self.replies.get(asked.question)
            return waiting.pop(0) if waiting else Reply(text=json.dumps(self.answer(asked)))

    def handle(self, path: str, headers: Mapping[str, str], body: bytes) -> Sent:
        read = _PROTOCOLS[next((known for known in _PROTOCOLS if re.search(known, path)), "")]
        protocol = model = ""
        try:
            asked = read(path, headers, json.loads(body))
        except RefusedError as refused:
            self.refused.append(str(refused))
            reply = Reply(refused.status, message=str(refused), reason=refused.reason)
        else:
            reply, protocol, model = self.take(asked), asked.protocol, asked.model
        data = json.dumps(_wrapped(reply, protocol, model)).encode()
        return Sent(reply.status, data, reply.headers, reply.hang, reply.drop)


class RefusedError(Exception):
    """A request that the real service would refuse."""

    def __init__(self, why: str, status: int = 400, reason: str = "") -> None:
        super().__init__(why)
        self.status, self.reason = status, reason


def _need(fine: object, why: str, status: int = 400, reason: str = "") -> None:
    if not fine:
        raise RefusedError(why, status, reason)


def _size(data: bytes) -> tuple[int, int]:
    with Image.open(io.BytesIO(data)) as picture:
        _need(picture.format == "JPEG", f"{picture.format}, not a JPEG")
        picture.load()
        _need(max(picture.size) <= MOST_PIXELS, f"a picture of {picture.size}")
        return picture.size


def _gemini(path: str, headers: Mapping[str, str], body: dict[str, Any]) -> Asked:
    found = re.fullmatch(r"/v1beta/models/([\w.-]+):generateContent", path)
    _need(found, f"no such path {path}", 404)
    assert found is not None
    _need(
        headers.get("x-goog-api-key") == KEY, "API key not valid. Please pass a valid API key.", 400, "API_KEY_INVALID"
    )
    config = body["generationConfig"]
    _need(config["responseMimeType"] == "application/json", "no JSON asked for")
    _need(0 <= config["temperature"] <= 2, "a temperature of 0..2")
    _need(next(c["role"] for c in body["contents"]) == "user", "the first turn is the user's")
    for setting in body.get("safetySettings", []):
        _need(setting["category"].startswith("HARM_CATEGORY_"), f"category {setting}")
        _need(setting["threshold"].startswith("BLOCK_"), f"threshold {setting}")
    parts = body["contents"][0]["parts"]
    inline = [p["inlineData"] for p in parts if "inlineData" in p]
    _need(all(i.get("mimeType", i.get("mime_type")) == "image/jpeg" for i in inline), "a picture that is no JPEG")
    jpegs = [base64.urlsafe_b64decode(i["data"]) for i in inline]
    return Asked(
        protocol="google",
        model=found[1],
        instruction="\n".join(p["text"] for p in body["systemInstruction"]["parts"]),
        texts=[p["text"] for p in parts if "text" in p],
        images=[_size(data) for data in jpegs],
        schema=_object(config["responseJsonSchema"]),
        temperature=config["temperature"],
        body=body,
        jpegs=jpegs,
    )


def _object(schema: dict[str, Any]) -> dict[str, Any]:
    _need(schema.get("type") == "object" and schema.get("properties"), "a schema of an object")
    return schema


def _openai(path: str, headers: Mapping[str, str], body: dict[str, Any]) -> Asked:
    _need(path == "/v1/chat/completions", f"no such path {path}", 404)
    _need(headers.get("authorization") == f"Bearer {KEY}", "Incorrect API key provided", 401)
    system = [m["content"] for m in body["messages"] if m["role"] == "system"]
    content = next(m["content"] for m in body["messages"] if m["role"] == "user")
    urls = [p["image_url"]["url"] for p in content if p["type"] == "image_url"]
    _need(all(url.startswith("data:image/jpeg;base64,") for url in urls), "a picture that is no JPEG")
    jpegs = [base64.b64decode(url.partition(",")[2], validate=True) for url in urls]
    wanted = body["response_format"]
    if wanted["type"] == "json_schema":
        _need(wanted["json_schema"]["strict"] is True, "not strict")
        schema = _object(wanted["json_schema"]["schema"])
        for shape in (schema, *schema.get("$defs", {}).values()):
            _need(shape["additionalProperties"] is False, "additionalProperties must be false")
            _need(sorted(shape["required"]) == sorted(shape["properties"]), "all fields must be required")
    else:
        _need(wanted["type"] == "json_object", f"format {wanted}")
        schema = _object(json.loads(re.findall(r"^\{.*\}$", "\n".join(system), re.MULTILINE)[-1]))
    return Asked(
        protocol="openai",
        model=body["model"],
        instruction="\n".join(system),
        texts=[p["text"] for p in content if p["type"] == "text"],
        images=[_size(data) for data in jpegs],
        schema=schema,
        temperature=body.get("temperature"),
        body=body,
        jpegs=jpegs,
    )


def _anthropic(path: str, headers: Mapping[str, str], body: dict[str, Any]) -> Asked:
    _need(KEY in (headers.get("x-api-key"), headers.get("authorization", "")[7:]), "invalid x-api-key", 401)
    _need("anthropic-version" in headers and body["max_tokens"] > 0, "version and max_tokens are required")
    _need(not body.get("stream"), "the stand-in does not stream")
    thinking = body.get("thinking", {})
    if thinking.get("type") == "enabled":
        _need(
            1024 <= thinking["budget_tokens"] < body["max_tokens"],
            "budget_tokens must be 1024 or more, below max_tokens",
        )
        _need(body.get("temperature", 1) == 1, "temperature may only be 1 when thinking is enabled")
    system = body["system"]
    text = system if isinstance(system, str) else "\n".join(block["text"] for block in system)
    content = body["messages"][0]["content"]
    sources = [block["source"] for block in content if block["type"] == "image"]
    _need(all(s["media_type"] == "image/jpeg" for s in sources), "a picture that is no JPEG")
    jpegs = [base64.b64decode(s["data"], validate=True) for s in sources]
    shape = body.get("output_config", body).get("format", body.get("output_format"))
    return Asked(
        protocol="anthropic",
        model=body["model"],
        instruction=text,
        texts=[block["text"] for block in content if block["type"] == "text"],
        images=[_size(data) for data in jpegs],
        schema=_object(shape["schema"]),
        temperature=body.get("temperature"),
        body=body,
        jpegs=jpegs,
    )


def _unknown(path: str, headers: Mapping[str, str], body: dict[str, Any]) -> Asked:
    raise RefusedError(f"no such path {path}", 404)


_PROTOCOLS: dict[str, Callable[[str, Mapping[str, str], dict[str, Any]], Asked]] = {
    ":generateContent": _gemini,
    "/chat/completions": _openai,
    "/v1/messages": _anthropic,
    "": _unknown,
}


def _wrapped(reply: Reply, protocol: str, model: str) -> dict[str, Any]:
    """The reply as the body of an answer."""
    if reply.status != 200:
        details = [{"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": reply.reason}]
        error = {"code": reply.status, "message": reply.message, "status": reply.reason or "ERROR", "details": details}
        return {"error": error, "type": "error"}
    if protocol == "google":
        return _gemini_answer(reply, model)
    text = reply.text or ""
    if protocol == "anthropic":
        usage = {"input_tokens": 1000, "output_tokens": 70}
        block = {"type": "text", "text": text}
        stop = "max_tokens" if reply.finish == "MAX_TOKENS" else "end_turn"
        message = {"id": "m", "type": "message", "role": "assistant", "model": model}
        return {**message, "content": [block], "stop_reason": stop, "usage": usage}
    finish = {"MAX_TOKENS": "length", "SAFETY": "content_filter"}.get(reply.finish, "stop")
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}
    usage = {"prompt_tokens": 1000, "completion_tokens": 70, "total_tokens": 1070}
    about = {"id": "c", "object": "chat.completion", "created": int(time.time()), "model": model}
    return {**about, "choices": [choice], "usage": usage}


def _gemini_answer(reply: Reply, model: str) -> dict[str, Any]:
    usage = {"promptTokenCount": 1000, "candidatesTokenCount": 20, "thoughtsTokenCount": 50, "totalTokenCount": 1070}
    about = {"usageMetadata": usage, "modelVersion": "gemini-2.5-flash" if model == "gemini-flash-latest" else model}
    if reply.blocked:
        return {"promptFeedback": {"blockReason": reply.blocked}, "usageMetadata": {"promptTokenCount": 1000}}
    candidate: dict[str, Any] = {"finishReason": reply.finish, "index": 0}
    if reply.text is not None:
        candidate["content"] = {"role": "model", "parts": [{"text": reply.text}]}
    return {"candidates": [candidate], **about}
