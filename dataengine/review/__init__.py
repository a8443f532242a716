"""The review page: people judge prompts one by one; every decision is a line in its run folder's `reviews.jsonl`."""

from __future__ import annotations

import getpass
import socket
import webbrowser
from pathlib import Path

from dataengine.console import say
from dataengine.errors import MissingPartError, UsageError
from dataengine.review.desk import LONGEST_NAME, Desk
from dataengine.review.guard import is_loopback


def serve(
    runs: Path,
    *,
    reviewer: str | None = None,
    sample: int | None = None,
    seed: int = 0,
    blind: bool = False,
    host: str = "127.0.0.1",
    port: int = 0,
    show: bool = False,
) -> None:
    """Serve the review page of a run folder, or of a folder of them, until it is interrupted.

    Args:
        reviewer: the name that decisions are written under; None for the user's.
        sample: judge only so many prompts, of all concepts and verdicts, chosen by `seed`.
        blind: hide the engine's verdicts and other reviewers'.
        host: the address to listen at.
        port: 0 for any free one.
        show: open it in a browser.

    Raises:
        MissingPartError: fastapi or uvicorn is not installed.
        UsageError: there is nothing to judge, or it cannot listen there.
    """
    name = reviewer or _user()
    if len(name) > LONGEST_NAME or not name.isprintable():
        raise UsageError("--reviewer: too long, or not printable", hint=f"{LONGEST_NAME} characters are the most")
    if sample is not None and sample < 1:
        raise UsageError(f"--sample {sample}: no number of prompts", hint="Such as 200")
    try:
        import uvicorn

        from dataengine.review.server import application
    except ImportError:
        message = "the review page needs fastapi and uvicorn"
        raise MissingPartError(message, hint="pip install 'dataengine[review]'") from None
    desk = Desk(runs, sample=sample, seed=seed, blind=blind)
    if desk.left_out:
        say(f"{desk.left_out} run folders are links to elsewhere and left out; name the folder they are in")
    listening = _listen(host, port)
    bound = listening.getsockname()[1]
    shown = (
        "127.0.0.1" if host in ("0.0.0.0", "") else "[::1]" if host == "::" else f"[{host}]" if ":" in host else host
    )
    url = f"http://{shown}:{bound}/"
    if not is_loopback(host):
        say("Anyone who can reach this machine can see these photos and judge these prompts")
    say(f"Judging {len(desk.items):,} prompts of {desk.images:,} images as {name} at {url}")
    say("Ctrl-C ends it; every decision is in reviews.jsonl of its run folder when the page says it is saved")
    if show:
        webbrowser.open(url)
    config = uvicorn.Config(
        application(desk, reviewer=name, host=host), log_level="warning", access_log=False, timeout_graceful_shutdown=3
    )
    uvicorn.Server(config).run(sockets=[listening])


def _user() -> str:
    try:
        return getpass.getuser()[:LONGEST_NAME]
    except (OSError, KeyError):  # a container's user without a name
        return "reviewer"


def _listen(host: str, port: int) -> socket.socket:
    """A socket that takes connections from now on: they wait until the server is there."""
    if not 0 <= port <= 65535:
        raise UsageError(f"cannot listen at {host}:{port}: no such port", hint="Choose another --port")
    listening = None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen()
    except OSError as error:
        if listening:
            listening.close()
        hint = "Choose another --host" if isinstance(error, socket.gaierror) else "Choose another --port"
        raise UsageError(f"cannot listen at {host}:{port}: {error.strerror or error}", hint=hint) from None
    return listening
