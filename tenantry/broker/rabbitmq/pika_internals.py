"""All private names of pika that are used, behind names of our own.

pika has no public way to send bytes that are encoded already, to read frames before it decodes
them, or to break a connection off. Other versions may lack these names: then the import fails, and
the error names pika's version.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any, Final, cast

import pika
from pika.adapters.base_connection import BaseConnection
from pika.adapters.utils import io_services_utils
from pika.channel import Channel
from pika.connection import Parameters
from pika.exceptions import AMQPConnectionError
from pika.frame import Frame, ProtocolHeader

from tenantry.broker.adapter import UNFENCED, TermFence
from tenantry.broker.port import BrokerUnavailableError

LARGEST_READ: Final = 64 * 1024
"""Bytes read from the socket at once. Each read releases the interpreter's lock and has to wait for
it again; pika's 4 KiB would do so every dozen messages."""


def check_names(names: Iterable[tuple[str, Iterable[str]]]) -> None:
    """Raise `ImportError` unless each private name is among the names known in its place."""
    missing = [name for name, known in names if name not in known]
    if missing:
        raise ImportError(
            f"pika {pika.__version__} is not a version that Tenantry works with: it has no "
            f"{', '.join(missing)}; install pika 1.4"
        )


_connection: Final = dir(pika.SelectConnection)
_reading: Final = pika.connection.Connection._on_data_available.__code__.co_names  # noqa: SLF001
check_names(
    (
        ("_on_data_available", _connection),
        ("_output_marshaled_frames", _connection),
        ("_adapter_call_later", _connection),
        ("_terminate_stream", _connection),
        ("_process_frame", _reading),
        ("_frame_buffer", _reading),
        ("_transport", BaseConnection.__init__.__code__.co_names),
        ("_MAX_RECV_BYTES", dir(getattr(io_services_utils, "_AsyncPlaintextTransport", None))),
        ("_consumers", Channel.close.__code__.co_names),
        ("_impl_class", inspect.signature(pika.BlockingConnection.__init__).parameters),
    )
)


class TermLapsedError(BrokerUnavailableError, AMQPConnectionError):
    """A connection was broken off because its term has lapsed: nothing may be sent on it.

    pika raises it from every call that waits on the connection, where its own errors are expected.
    """


class FencedConnection(pika.SelectConnection):
    """A connection that breaks off, instead of sending, once its term has lapsed.

    Bytes that a frozen daemon had ready to send, acks above all, stay unsent when it wakes up too
    late.
    """

    fence: TermFence = UNFENCED
    _breaking = False

    def send_frames(self, frames: bytes) -> None:
        """Send frames that are encoded already, in one write."""
        self._output_marshaled_frames([frames])

    def break_off(self, error: Exception) -> None:
        """Break the connection off at once, for this reason; nothing more is sent on it."""
        self._terminate_stream(error)

    def _output_marshaled_frames(self, marshaled_frames: Any) -> None:
        """Send frames; everything that pika sends passes here."""
        if self.fence.valid():
            super()._output_marshaled_frames(marshaled_frames)
        elif not self._breaking:
            # Only after the caller has returned: pika's heartbeat, for one, would go on with a
            # connection that is closed.
            self._breaking = True
            self._adapter_call_later(0, self._break_off_lapsed)

    def _break_off_lapsed(self) -> None:
        if not self.is_closed:
            self.break_off(TermLapsedError(f"the term {self.fence.number} has lapsed"))


class FrameReadingConnection(FencedConnection):
    """A connection whose bytes, once it is open, are read by `read_frames`."""

    def read_frames(self, data: bytes) -> bytes:
        """Read the whole frames in `data`, and return the rest."""
        raise NotImplementedError

    def process_frame(self, frame: Frame | ProtocolHeader) -> None:
        """Have pika handle a frame."""
        self._process_frame(frame)

    def read_in_large_pieces(self) -> None:
        """Read more from the socket at once than pika does; call it on an open connection."""
        if self._transport is not None:
            cast("Any", self._transport)._MAX_RECV_BYTES = LARGEST_READ  # noqa: SLF001

    def _on_data_available(self, data_in: bytes) -> None:
        if not self.is_open:
            super()._on_data_available(data_in)
            return
        # Every byte is a sign of life, including parts of a large body on a slow line.
        self.bytes_received += len(data_in)
        data = self._frame_buffer + data_in if self._frame_buffer else data_in
        self._frame_buffer = b""
        self._frame_buffer = self.read_frames(data)


def close_with_consumers(channel: Channel) -> None:
    """Close a channel, and its consumers with it.

    pika cancels them first. Then a queue's next consumer would begin before the first one's
    unsettled messages are back in the queue. Raises `ChannelWrongStateError`.
    """
    channel._consumers.clear()  # noqa: SLF001
    channel.close()


def fenced_blocking_connection(parameters: Parameters, by: TermFence) -> pika.BlockingConnection:
    """Connect; everything sent, from the first byte on, is sent under the fence.

    Raises what `pika.BlockingConnection` does.
    """

    class Fenced(FencedConnection):
        fence = by

    return pika.BlockingConnection(parameters, _impl_class=cast("Any", Fenced))
