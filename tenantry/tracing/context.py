"""The trace that something belongs to, as headers carry it: the W3C's trace context.

Headers come from tenants and from anybody who can reach the API. What is not exactly as it should
be is no context, and costs no more than to see that.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple, TypeGuard

TRACEPARENT: Final = "traceparent"
TRACESTATE: Final = "tracestate"

_LONGEST_PARENT: Final = 256
"""Characters; the version that there is has 55, and later ones may add to it."""

_LONGEST_STATE: Final = 512

_PARENT: Final = re.compile(
    r"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?",
    re.ASCII,
)
_SAMPLED: Final = 0x01

NOT_RECORDED: Final = "-00"
"""How the header of a trace ends that shall not be recorded; other flags need a closer look."""

_SAYS_NO: Final = re.compile(
    rf'"{TRACEPARENT}": ?"00-[0-9a-f]{{32}}-[0-9a-f]{{16}}{NOT_RECORDED}"', re.ASCII
)


class TraceContext(NamedTuple):
    """A place in a trace: its ids in hexadecimal digits, whether it is recorded, and others' notes.

    The ids have 32 and 16 digits. `state` is for vendors of tracing, and passed on as it came.
    """

    trace_id: str
    span_id: str
    sampled: bool
    state: str = ""

    def headers(self) -> dict[str, str]:
        """Give the headers that carry it."""
        flags = _SAMPLED if self.sampled else 0
        headers = {TRACEPARENT: f"00-{self.trace_id}-{self.span_id}-{flags:02x}"}
        return headers | {TRACESTATE: self.state} if self.state else headers


def read(parent: object, state: object = None) -> TraceContext | None:
    """Read a context from the values of its two headers; None where there is none to be read."""
    if not isinstance(parent, str) or len(parent) > _LONGEST_PARENT:
        return None
    match = _PARENT.fullmatch(parent)
    if match is None or (match[1] == "00" and match[5] is not None):
        return None
    sampled = bool(int(match[4], 16) & _SAMPLED)
    return TraceContext(match[2], match[3], sampled, state if _is_state(state) else "")


def _is_state(state: object) -> TypeGuard[str]:
    return (
        isinstance(state, str)
        and len(state) <= _LONGEST_STATE
        and state.isascii()
        and state.isprintable()
    )


def of_message(headers: Mapping[str, object] | None) -> TraceContext | None:
    """Read the context that a message has come with."""
    if not headers:
        return None
    try:
        parent = headers.get(TRACEPARENT)
        return None if parent is None else read(parent, headers.get(TRACESTATE))
    except ValueError:  # they can't be read: the message will be told so
        return None


def says_no(headers: Mapping[str, object]) -> bool:
    """Tell at little cost whether headers, the `text` of a flat JSON object, say not to record.

    What looks like a no is one. False says nothing: `of_message` does.
    """
    text = getattr(headers, "text", "")
    return (
        _SAYS_NO.search(text) is not None and text.count("{") == 1 and text.count(TRACEPARENT) == 1
    )


def of_request(headers: Iterable[tuple[bytes, bytes]]) -> TraceContext | None:
    """Read the context of an HTTP request, whose names of headers are in small letters."""
    parents, states = [], []
    for name, value in headers:
        if name == b"traceparent":
            parents.append(value.decode("latin-1"))
        elif name == b"tracestate":
            states.append(value.decode("latin-1"))
    return read(parents[0], ",".join(states)) if len(parents) == 1 else None
