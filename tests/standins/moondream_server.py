"""A local server that speaks Moondream's `POST /v1/detect`, refuses what the service would, and fails as it is told."""

from __future__ import annotations

import base64
import io
import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from PIL import Image

from tests.standins.serving import LocalServer, Sent

KEY = "the-right-key"
MOST_PIXELS = 768
PREFIX = "data:image/jpeg;base64,"


@dataclass(frozen=True)
class Asked:
    """One well-formed request."""

    label: str
    size: tuple[int, int]
    key: str
    jpeg: bytes = field(repr=False)


@dataclass(frozen=True)
class Reply:
    """What the server does with a request instead of answering it well.

    Attributes:
        status: of HTTP.
        text: the body.
        hang: seconds to wait before it answers.
        drop: close the connection in the middle of the body.
        drip: seconds between its bytes.
    """

    status: int = 200
    text: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    hang: float = 0
    drop: bool = False
    drip: float = 0


Box = tuple[float, float, float, float]  # x_min, y_min, x_max, y_max, each 0..1
Answerer = Callable[[str], Sequence[Box]]


def sensible(label: str) -> list[Box]:
    """Nothing for what is called absent, else one box, in a place of its label's own."""
    if "absent" in label:
        return []
    place = zlib.crc32(label.encode("utf-8", "replace"))
    x, y = 0.05 + 0.5 * (place % 97) / 97, 0.05 + 0.5 * (place % 89) / 89
    return [(x, y, x + 0.35, y + 0.4)]


class MoondreamServer(LocalServer):
    """Serves while entered (`with`).

    Args:
        answer: the boxes for a label.
        replies: what the next requests get instead, one after another.
        key: the key it wants; empty for a station of one's own, which asks for none.

    Attributes:
        asked: every request it took for well-formed.
        refused: why it refused the others.
    """

    def __init__(self, answer: Answerer = sensible, replies: Sequence[Reply] = (), key: str = "") -> None:
        super().__init__()
        self.answer = answer
        self.replies = list(replies)
        self.key = key
        self.asked: list[Asked] = []
        self.refused: list[str] = []

    @property
    def url(self) -> str:
        """What `--moondream_url` is given."""
        return f"{self.root}/v1"

    def take(self, asked: Asked) -> Reply:
        """The reply to a well-formed request."""
        with self.lock:
            self.asked.append(asked)
            return self.replies.pop(0) if self.replies else Reply(text=self._found(asked))

    def _found(self, asked: Asked) -> str:
        names = ("x_min", "y_min", "x_max", "y_max")
        objects = [dict(zip(names, box, strict=True)) for box in self.answer(asked.label)]
        return json.dumps({"request_id": f"detect-{len(self.asked)}", "objects": objects})

    def handle(self, path: str, headers: Mapping[str, str], body: bytes) -> Sent:
        key = headers.get("x-moondream-auth", "")
        refusal = _wrong_key(key, self.key) or _wrong_place(path, headers.get("content-type"))
        asked = None if refusal else _read(body, key)
        if isinstance(asked, Asked):
            reply = self.take(asked)
        else:
            status, message = refusal or (400, str(asked))
            self.refused.append(message)
            reply = Reply(status, json.dumps({"error": {"message": message}}))
        return Sent(
            reply.status, reply.text.encode("utf-8", "surrogatepass"), reply.headers, reply.hang, reply.drop, reply.drip
        )


def _wrong_key(key: str, wanted: str) -> tuple[int, str] | None:
    if not wanted or key == wanted:
        return None
    return (403, "invalid API key") if key else (401, "no API key")


def _wrong_place(path: str, content_type: str | None) -> tuple[int, str] | None:
    if path != "/v1/detect":
        return 404, f"no such endpoint: {path}"
    return None if content_type == "application/json" else (415, f"not JSON: {content_type}")


def _read(data: bytes, key: str) -> Asked | str:
    """A request's body, or what is wrong with it."""
    body = json.loads(data)
    if set(body) != {"image_url", "object"} or not isinstance(body["object"], str) or not body["object"]:
        return f"fields {sorted(body)}"
    if not body["image_url"].startswith(PREFIX):
        return "image_url is no data URL of a JPEG"
    jpeg = base64.b64decode(body["image_url"].removeprefix(PREFIX), validate=True)
    with Image.open(io.BytesIO(jpeg)) as image:
        image.load()
        if image.format != "JPEG" or max(image.size) > MOST_PIXELS:
            return f"a {image.format} of {image.size}"
        return Asked(body["object"], image.size, key, jpeg)
