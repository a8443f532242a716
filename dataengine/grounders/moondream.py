"""The grounder `moondream`: Moondream's cloud, or a station of one's own, over its REST (docs.moondream.ai)."""

from __future__ import annotations

import asyncio
import base64
import email.utils
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from types import TracebackType
from typing import TYPE_CHECKING, Annotated

from pydantic import BaseModel, Field, ValidationError

from dataengine.errors import DataEngineError, KeyRefusedError, StageError, UsageError
from dataengine.grounders.detector import libraries
from dataengine.images import Photo
from dataengine.journal import Answer, digest
from dataengine.jpeg import jpeg_of
from dataengine.keys import key, without_keys
from dataengine.records import DescribedRegion, Detection, Usage
from dataengine.retry import patiently
from dataengine.settings import MOONDREAM_CLOUD, Settings

if TYPE_CHECKING:
    import httpx2

CHEAPER = "Use --budget_tokens, another grounder, or a station of your own (--moondream_url)"
LONGEST = 200  # characters of what the service says

_Part = Annotated[float, Field(allow_inf_nan=False)]


class Found(BaseModel):
    """One thing in Moondream's answer; its sides are parts of the picture's width and height."""

    x_min: _Part
    y_min: _Part
    x_max: _Part
    y_max: _Part


class Reply(BaseModel):
    """Moondream's answer to `detect`."""

    objects: list[Found]


class MoondreamGrounder:
    """Asks a Moondream service for each label; Enter it (`async with`) before asking.

    The picture it sends is the photo's view. Moondream gives no scores.
    """

    name = "moondream"
    needs_boxes = False
    detects = True

    def __init__(self, settings: Settings) -> None:
        if settings.budget_usd is not None and settings.moondream_url == MOONDREAM_CLOUD:
            raise UsageError(
                "--budget_usd cannot be kept: what a call of Moondream's cloud costs is unknown", hint=CHEAPER
            )
        self._settings = settings
        self._url = f"{settings.moondream_url}/detect"
        self._key = key("moondream")
        # of a station of one's own a call costs nothing; what the cloud takes for one it does not say
        self._paid = Usage(calls=1, usd=None if settings.moondream_url == MOONDREAM_CLOUD else 0.0)
        self.version = f"1/{digest([self._url, settings.vlm_side])}"
        self.detail: Mapping[str, str] = {**libraries("httpx2"), "url": self._url}

    async def __aenter__(self) -> MoondreamGrounder:
        import httpx2

        limits = httpx2.Limits(max_connections=None)  # `--concurrency` bounds the calls under way
        self._http = httpx2.AsyncClient(timeout=self._settings.vlm_timeout, limits=limits)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.aclose()

    async def ground(self, photo: Photo, region: DescribedRegion) -> Answer[list[Detection]]:
        """The boxes that Moondream finds for the label.

        Raises:
            StageError: no answer that keeps the protocol; its `reason` says why: rate_limited, server_error, timeout,
                connection, request_refused or bad_answer.
            KeyRefusedError: the key is refused.
        """
        picture = base64.b64encode(await asyncio.to_thread(jpeg_of, photo)).decode("ascii")
        body = {"image_url": f"data:image/jpeg;base64,{picture}", "object": region.label}
        content = json.dumps(body).encode("ascii")  # escaped: any label can be sent

        async def once() -> Answer[list[Detection]]:
            return Answer(self._read(await self._post(content), photo), self._paid)

        return await patiently(once, self._settings.retry_seconds, service="moondream", most=self._paid)

    async def _post(self, content: bytes) -> httpx2.Response:
        import httpx2

        headers = {"Content-Type": "application/json", **({"X-Moondream-Auth": self._key} if self._key else {})}
        try:
            async with asyncio.timeout(self._settings.vlm_timeout):  # the client's own starts anew with each byte
                return await self._http.post(self._url, content=content, headers=headers)
        except (httpx2.TimeoutException, TimeoutError):
            message = f"{self._url} did not answer in {self._settings.vlm_timeout:g} s"
            hint = "Run again, or raise --vlm_timeout"
            raise StageError(message, hint=hint, reason="timeout", retryable=True) from None
        except httpx2.TransportError as error:
            message = f"{self._url} could not be reached, or broke off ({type(error).__name__}{_colon(str(error))})"
            hint = "Check --moondream_url, then run again"
            raise StageError(message, hint=hint, reason="connection", retryable=True) from None

    def _read(self, response: httpx2.Response, photo: Photo) -> list[Detection]:
        if response.status_code != 200:
            raise _refusal(response, self._url)
        try:
            return in_pixels(Reply.model_validate_json(response.content), photo)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            message = f"{self._url} gave an answer that breaks its protocol ({where}{_colon(first['msg'])})"
            wrong = StageError(message, hint="Check --moondream_url", reason="bad_answer")
            wrong.usage = self._paid
            raise wrong from None


def in_pixels(reply: Reply, photo: Photo) -> list[Detection]:
    """The things that Moondream found, in pixels of the photo."""
    w, h = photo.width, photo.height
    return [Detection(box=(o.x_min * w, o.y_min * h, o.x_max * w, o.y_max * h)) for o in reply.objects]


def _refusal(response: httpx2.Response, url: str) -> DataEngineError:
    """An answer other than 200 as an error of ours."""
    status = response.status_code
    told = f"{url} answered {status}{_colon(' '.join(without_keys(response.text).split())[:LONGEST])}"
    if status in (401, 403):
        return KeyRefusedError(f"Moondream refuses the key: {told}", hint="Check MOONDREAM_API_KEY, then run again")
    if status == 429:
        wait = _retry_after(response.headers.get("retry-after", ""))
        when = "" if wait is None else f" (asks to wait {wait:g} s)"
        hint = "Run again later, or with a lower --concurrency"
        return StageError(f"{told}{when}", hint=hint, reason="rate_limited", retryable=True, retry_after=wait)
    if status >= 500:
        return StageError(told, hint="Run again to retry", reason="server_error", retryable=True)
    return StageError(told, hint="Check --moondream_url", reason="request_refused")


def _retry_after(value: str) -> float | None:
    """Seconds to wait by a Retry-After header: a number of them, or a date (RFC 9110)."""
    if value.strip().isdecimal():
        return float(value)
    try:
        date = email.utils.parsedate_to_datetime(value)
    except ValueError:
        return None
    return max(0.0, (date.astimezone(UTC) - datetime.now(UTC)).total_seconds())


def _colon(text: str) -> str:
    return f": {text}" if text else ""
