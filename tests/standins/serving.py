"""What the stand-in servers share: HTTP on a local port, answers that hang or break off."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self


@dataclass(frozen=True)
class Sent:
    """What goes back over the wire.

    Attributes:
        hang: seconds to wait before it is sent.
        drip: seconds between the bytes of the body.
        drop: promise more than the body and close the connection.
    """

    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    hang: float = 0
    drop: bool = False
    drip: float = 0

    def pieces(self) -> list[bytes]:
        """The body as it is written: whole, or byte by byte where it drips."""
        return [self.body[i : i + 1] for i in range(len(self.body))] if self.drip else [self.body]


class LocalServer(ABC):
    """Serves while entered (`with`), each request in a thread of its own."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self._stop = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True

    @abstractmethod
    def handle(self, path: str, headers: Mapping[str, str], body: bytes) -> Sent:
        """The answer to a POST; `headers` by name in lower case."""

    @property
    def root(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._server.shutdown()
        self._server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                sent = outer.handle(self.path, {k.lower(): v for k, v in self.headers.items()}, body)
                outer._stop.wait(sent.hang)
                self.send_response(sent.status)
                for name, value in {"content-type": "application/json", **sent.headers}.items():
                    self.send_header(name, value)
                self.send_header("content-length", str(len(sent.body) + (100 if sent.drop else 0)))
                self.end_headers()
                for piece in sent.pieces():
                    self.wfile.write(piece)
                    outer._stop.wait(sent.drip)
                if sent.drop:
                    self.wfile.flush()
                    self.connection.close()
                    self.close_connection = True

            def log_message(self, *_: object) -> None:
                """Nothing on the terminal."""

        return Handler
