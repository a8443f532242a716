"""What may reach the review server: requests of its own page, by its own name, of a bearable size.

Any page that is open in the same browser can send requests to 127.0.0.1, and one whose name is made to point there
could read the answers as well ("DNS rebinding"). So a request is refused that names another host, that another site's
page has sent, or whose body is long; and answers say that no other page may show or load them.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

MOST_BYTES = 256 * 1024  # of a body: a prompt of the longest text, written in escapes, has under 100 KB

HEADERS = {
    "cache-control": "no-store",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}


class Guard:
    """An ASGI application that lets through to another what may reach it.

    Args:
        app: the other.
        host: the address the server was told to listen at.
        policy: the Content-Security-Policy of its answers.
    """

    def __init__(self, app: App, host: str, policy: str) -> None:
        self._app = app
        self._names = {"localhost", "127.0.0.1", "::1", host.lower()}
        self._any_address = not is_loopback(host)
        if self._any_address:
            self._names |= {socket.gethostname().lower(), socket.getfqdn().lower()}
        headers = {**HEADERS, "content-security-policy": policy}
        self._headers = [(name.encode(), value.encode()) for name, value in headers.items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            else:
                await send({"type": "websocket.close"})
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = {name for name, _ in message.get("headers", ())}
                more = [(name, value) for name, value in self._headers if name not in own]
                message = {**message, "headers": [*message.get("headers", ()), *more]}
            await send(message)

        refused = self._why_not(scope)
        if refused:
            await _answer(send_with_headers, *refused)
            return
        body = await _whole(receive)
        if body is None:
            await _answer(send_with_headers, 413, "the body is too long")
            return
        await self._app(scope, _given(body, receive), send_with_headers)

    def _why_not(self, scope: Scope) -> tuple[int, str] | None:
        """Status and words with which a request is refused by its head; None where it is not."""
        headers: dict[str, str] = {}
        for raw, value in scope["headers"]:
            name = raw.decode("latin-1").lower()
            if name in ("host", "origin", "content-length") and name in headers:
                return 400, f"two headers {name}"
            headers[name] = value.decode("latin-1")
        host = headers.get("host", "")
        if not self._is_own(host):
            return 403, "this server is not called that"
        if "origin" in headers and headers["origin"].lower() != f"http://{host.lower()}":
            return 403, "a page of another site sent this"
        site = headers.get("sec-fetch-site", "none")
        opened = scope["method"] == "GET" and scope["path"] == "/" and headers.get("sec-fetch-mode") == "navigate"
        if site not in ("none", "same-origin") and not opened:
            return 403, "a page of another site sent this"
        if scope["method"] == "POST" and headers.get("content-type", "").partition(";")[0] != "application/json":
            return 415, "a decision is sent as application/json"
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > MOST_BYTES:
            return 413, "the body is too long"
        return None

    def _is_own(self, host: str) -> bool:
        """Whether a Host header names this server. Where it listens to others it may be any address, but no name it
        does not have: a name is what rebinding needs."""
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdecimal() and not host.endswith("]") else host
        name = name.removeprefix("[").removesuffix("]").lower()
        return name in self._names or (self._any_address and _is_address(name))


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    return host == "localhost" or (_is_address(host) and ipaddress.ip_address(host).is_loopback)


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


async def _whole(receive: Receive) -> bytes | None:
    """A request's body; None where it is too long, whatever its head said."""
    body = b""
    while True:
        message = await receive()
        body += bytes(message.get("body", b""))
        if len(body) > MOST_BYTES:
            return None
        if message["type"] == "http.disconnect" or not message.get("more_body"):
            return body


def _given(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives a body that was read already."""
    given = False

    async def give() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return give


async def _answer(send: Send, status: int, text: str) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": f"{text}\n".encode()})
