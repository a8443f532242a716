"""What a run may do at once, in a minute and in all: every call to a service passes here before it is made.

How many calls are in flight follows the service by additive increase and multiplicative decrease (Chiu and Jain,
"Analysis of the increase and decrease algorithms for congestion avoidance", 1989): when it asks to slow down they are
halved, and each round of answers raises them by a sixteenth of `--concurrency`, at the most to that. Before a call its
greatest cost is set aside, and what it cost takes that place when it ends, so that neither tokens a minute nor the
budget is ever passed by calls under way together.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections import deque
from collections.abc import AsyncIterator
from contextvars import ContextVar
from dataclasses import dataclass, field

from dataengine.errors import DataEngineError, StoppedError
from dataengine.records import Usage
from dataengine.settings import Settings, load_settings

MINUTE = 60.0
STEPS = 16  # rounds of answers in which a service that was slowed down is back at `concurrency`
ONE_CALL = Usage(calls=1)


@dataclass(eq=False)
class Call:
    """A call under way: the most it can cost, and, told by its maker once it is known, what it cost."""

    most: Usage
    started: float
    usage: Usage = field(default_factory=Usage)
    ended: bool = False

    @property
    def tokens(self) -> int:
        return _tokens(self.usage if self.ended else self.most)


@dataclass
class _Service:
    """One service's share.

    Attributes:
        window: how many calls may be in flight; its whole part counts.
        turn: held by the call that waits first.
        slowed: when the window was last halved.
        next_start: when the next call may start, by calls a minute.
        recent: the calls of the last minute.
    """

    window: float
    in_flight: int = 0
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    slowed: float = -math.inf
    next_start: float = -math.inf
    recent: deque[Call] = field(default_factory=deque)


class Limits:
    """The bounds of one run.

    Args:
        settings: `concurrency`, and where they are given `rpm`, `tpm`, `budget_usd` and `budget_tokens`.
        spent: what counts against the budget already.

    Attributes:
        spent: that, and all that calls have cost since.
        stopped: why no call may begin any more; None while they may.
    """

    def __init__(self, settings: Settings, spent: Usage | None = None) -> None:
        self._settings = settings
        self._step = max(1.0, settings.concurrency / STEPS)
        self._services: dict[str, _Service] = {}
        self._under_way: set[Call] = set()
        self._waiters: set[asyncio.Future[None]] = set()
        self.spent = spent or Usage()
        self.stopped: StoppedError | None = None
        self._halted = asyncio.Event()

    def stop(self, why: StoppedError) -> None:
        """Let no call begin any more; those under way go on, those that wait are given up with `why`."""
        self.stopped = self.stopped or why
        self._halted.set()
        self._tell()

    def check(self) -> None:
        """Raise StoppedError where nothing may begin any more."""
        if self.stopped:
            raise StoppedError(
                self.stopped.message,
                hint=self.stopped.hint,
                reason=self.stopped.reason,
                exit_code=self.stopped.exit_code,
            )

    async def pause(self, seconds: float) -> None:
        """Sleep; no longer than until the run is stopped."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._halted.wait()

    @contextlib.asynccontextmanager
    async def call(self, service: str, most: Usage = ONE_CALL) -> AsyncIterator[Call]:
        """Enter when a call may be made; set `usage` of what is given before leaving, where it did not fail.

        Args:
            service: calls to different ones slow down apart from each other.
            most: the most that the call can cost.

        Raises:
            StoppedError: it may not be made any more.
        """
        one = self._services.setdefault(service, _Service(self._settings.concurrency))
        async with one.turn:
            while (wait := self._wait(one, most)) > 0:
                await self._change(wait)
            call = self._begin(one, most)
        try:
            yield call
            one.window = min(self._settings.concurrency, one.window + self._step / one.window)
        except DataEngineError as error:
            call.usage = error.usage or Usage()
            if error.reason == "rate_limited":
                self._slow_down(one, call)
            raise
        finally:
            self._end(one, call)

    def _wait(self, one: _Service, most: Usage) -> float:
        """Seconds until a call may begin by the clock; 0 where it may now, inf where another must end first."""
        self.check()
        if len(self._under_way) >= self._settings.concurrency or one.in_flight >= math.floor(one.window):
            return math.inf
        if not self.affords(most):
            return math.inf  # for what calls under way have set aside and will not use
        now = _now()
        return max(one.next_start - now, self._until_tokens(one, most, now))

    def _until_tokens(self, one: _Service, most: Usage, now: float) -> float:
        if self._settings.tpm is None:
            return 0.0
        while one.recent and one.recent[0].started <= now - MINUTE:
            one.recent.popleft()
        used = sum(call.tokens for call in one.recent)
        if not one.recent or used + _tokens(most) <= self._settings.tpm:
            return 0.0  # a call larger than the limit goes alone
        return one.recent[0].started + MINUTE - now

    def affords(self, most: Usage) -> bool:
        """Whether a call can be paid whatever the calls under way cost; where it never can be, the run is stopped."""
        over = self._over_budget([call.most for call in self._under_way], most)
        if over and not self._under_way:
            self.stop(StoppedError(over, hint="Raise it and run the same command again to go on", reason="budget"))
            self.check()
        return not over

    def _over_budget(self, reserved: list[Usage], most: Usage) -> str:
        """What a budget lacks for a call, in words; empty where it suffices."""
        usd, tokens, spent = self._settings.budget_usd, self._settings.budget_tokens, self.spent
        if usd is not None and spent.usd is None:
            return f"--budget_usd {usd:g} cannot be kept: what a call cost is unknown (say it with --price)"
        if usd is not None and (spent.usd or 0) + sum(one.usd or 0 for one in (*reserved, most)) > usd:
            return (
                f"--budget_usd {usd:g}: ${spent.usd or 0:.4f} spent, and the next call could cost ${most.usd or 0:.4f}"
            )
        if tokens is not None and sum(map(_tokens, (spent, *reserved, most))) > tokens:
            return (
                f"--budget_tokens {tokens:,}: {_tokens(spent):,} spent, and the next call could take {_tokens(most):,}"
            )
        return ""

    def _begin(self, one: _Service, most: Usage) -> Call:
        call = Call(most, _now())
        if self._settings.rpm is not None:
            one.next_start = call.started + MINUTE / self._settings.rpm
        if self._settings.tpm is not None:
            one.recent.append(call)
        one.in_flight += 1
        self._under_way.add(call)
        return call

    def _end(self, one: _Service, call: Call) -> None:
        call.ended = True
        one.in_flight -= 1
        self._under_way.remove(call)
        self.spent += call.usage
        self._tell()

    def _slow_down(self, one: _Service, call: Call) -> None:
        if call.started < one.slowed:
            return  # it was sent before the window was halved: the same jam
        one.window = max(1.0, min(one.window, one.in_flight) / 2)
        one.slowed = _now()

    async def _change(self, seconds: float) -> None:
        """Wait until a call ends or the run is stopped, for at most `seconds`."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.add(waiter)
        try:
            await asyncio.wait([waiter], timeout=None if math.isinf(seconds) else seconds)
        finally:
            self._waiters.discard(waiter)

    def _tell(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)


def _now() -> float:
    return asyncio.get_running_loop().time()


def _tokens(usage: Usage) -> int:
    return usage.input_tokens + usage.output_tokens


_current: ContextVar[Limits | None] = ContextVar("limits", default=None)


def current() -> Limits:
    """The limits of the run that this is a part of; outside of one, limits that bound nothing."""
    return _current.get() or Limits(load_settings({"preset": "offline", "concurrency": 1024}))


def observe(limits: Limits) -> None:
    """Make these the limits of everything that is begun here from now on."""
    _current.set(limits)
