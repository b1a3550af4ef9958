"""What is followed of the work that is done. Where nobody collects it, all of this does nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, NamedTuple, Protocol, Self

from tenantry.tracing.context import TraceContext

CLOSE_SECONDS: Final = 3.0
"""How long the last spans may take to be sent at the end, whoever collects them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """Where spans go, by OTLP over HTTP, and how they are named there.

    Of what nobody else has decided about, `sample_ratio` is recorded. `headers` go along with each
    request, which may take `timeout` seconds. `system` names the broker's kind. Where another
    process is to see how many were lost, they are counted in the file of a descriptor, `lost_in`.
    """

    endpoint: str
    service_name: str
    system: str
    sample_ratio: float = 1.0
    timeout: float = 5.0
    headers: dict[str, str] = field(default_factory=dict, repr=False)
    lost_in: int | None = None


class Asked(NamedTuple):
    """A request: its method, the route that answers it, with braces in it, its path, and whose."""

    method: str
    route: str
    path: str
    tenant_id: str | None


class Arrived(Protocol):
    """What is told of a message that a batch is made of."""

    @property
    def id(self) -> str | None:
        """Its id, if its sender has given one."""

    @property
    def topic(self) -> str:
        """Its topic."""

    @property
    def partition(self) -> int:
        """Its partition."""

    @property
    def headers(self) -> Mapping[str, object] | None:
        """Its headers; reading them may raise `ValueError`."""


class Handled(Protocol):
    """What is told of a message that a handler is called with."""

    @property
    def id(self) -> str:
        """Its id."""

    @property
    def tenant_id(self) -> str:
        """Whose it is."""

    @property
    def topic(self) -> str:
        """Its topic."""

    @property
    def partition(self) -> int:
        """Its partition."""

    @property
    def headers(self) -> Mapping[str, object]:
        """Its headers."""

    @property
    def attempt(self) -> int:
        """Which attempt this is, from 1."""


class Sent(Protocol):
    """What is told of a message that is published."""

    @property
    def exchange(self) -> str:
        """Where it goes."""

    @property
    def routing_key(self) -> str:
        """What it is routed by."""

    @property
    def message_id(self) -> str | None:
        """Its id."""


class Span:
    """Something that is being done: between `with` and its end, what else begins is a part of it.

    This one is not recorded. Its `context`, if there is one, is what others are to be told.
    `followed` are messages of a batch that stand in traces: the index of each, and its trace's id.
    """

    __slots__ = ("context", "followed")

    def __init__(
        self, context: TraceContext | None = None, followed: Sequence[tuple[int, str]] = ()
    ) -> None:
        self.context = context
        self.followed = followed

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        return None

    def failed(self, kind: str) -> None:
        """Note that it was in vain; `kind` says how, in one word."""

    def answered(self, status: int) -> None:
        """Note the status with which a request was answered."""


NO_SPAN: Final = Span()


class Tracer:
    """Follows what is done, and ignores it where a subclass does not say otherwise.

    Each method begins a span. A call a batch or a request, and one for each handler that is run;
    they neither block nor raise. Callable from any thread.
    """

    on: bool = False
    """Whether anything is followed at all."""

    def context_of(self, headers: Iterable[tuple[bytes, bytes]]) -> TraceContext | None:
        """Read the trace that an HTTP request belongs to."""
        return None

    def current(self) -> TraceContext | None:
        """Tell what is being recorded on this thread, or in this task."""
        return None

    def serving(self, asked: Asked, parent: TraceContext | None) -> Span:
        """Begin to serve a request."""
        return NO_SPAN

    def executing(self, command: str, tenant_id: str, parent: TraceContext | None) -> Span:
        """Begin to carry out a tenant's command, for who has asked for it."""
        return NO_SPAN

    def publishing(
        self, tenant_id: str, messages: Sequence[Sent], parent: TraceContext | None
    ) -> Span:
        """Begin to publish messages, one at least; its `context` is what they are to carry."""
        return NO_SPAN

    def processing(self, tenant_id: str, batch: Sequence[Arrived]) -> Span:
        """Begin with a batch of messages, each of which may be a part of another trace."""
        return NO_SPAN

    def storing(self) -> Span:
        """Begin to store a batch, or a part of it, as far as its commit."""
        return NO_SPAN

    def handling(self, message: Handled) -> Span:
        """Begin to call a handler with one of a batch's messages."""
        return NO_SPAN

    def lost(self) -> Mapping[str, int]:
        """Count the spans that did not arrive since the start, by reason; none if nothing is on."""
        return {}

    def close(self, seconds: float = CLOSE_SECONDS) -> None:
        """Send what is left, for so long at most; after that nothing is followed any more."""
