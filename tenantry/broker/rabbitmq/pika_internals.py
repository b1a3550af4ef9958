"""All of pika's private names that we use, under names of our own.

pika has no public way to send bytes that are encoded already, to read frames before it decodes
them, or to break a connection off. Other versions may have none of these names: then nothing is
connected, and the error says which version it is.
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
"""Bytes taken from the socket at once. Each read gives up the interpreter's lock and has to wait
for it again; pika's 4 KiB would do so every dozen messages."""


def check_names(names: Iterable[tuple[str, Iterable[str]]]) -> None:
    """Raise `ImportError` unless each private name is among those that pika has in a place."""
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
    """A connection was broken off because nothing may be sent on it any more.

    pika raises it from whatever waits on the connection, where its own errors are expected.
    """


class FencedConnection(pika.SelectConnection):
    """A connection that sends nothing any more once its term has lapsed, and breaks instead.

    What a frozen daemon had ready to be sent when it was stopped, acknowledgements above all, stays
    unsent when it wakes up too late.
    """

    fence: TermFence = UNFENCED
    _breaking = False

    def send_frames(self, frames: bytes) -> None:
        """Send frames that are encoded already, in one write."""
        self._output_marshaled_frames([frames])

    def break_off(self, error: Exception) -> None:
        """End the connection at once, for this reason: nothing is said on it any more."""
        self._terminate_stream(error)

    def _output_marshaled_frames(self, marshaled_frames: Any) -> None:
        """Send frames; everything pika sends goes this way."""
        if self.fence.valid():
            super()._output_marshaled_frames(marshaled_frames)
        elif not self._breaking:
            # Not before the caller has returned: pika's heartbeat, for one, would go on with a
            # connection that is closed.
            self._breaking = True
            self._adapter_call_later(0, self._break_off_lapsed)

    def _break_off_lapsed(self) -> None:
        if not self.is_closed:
            self.break_off(TermLapsedError(f"the term {self.fence.number} has lapsed"))


class FrameReadingConnection(FencedConnection):
    """A connection whose bytes, once it is open, are read by `read_frames`."""

    def read_frames(self, data: bytes) -> bytes:
        """Read the whole frames in `data`, and give what is left of it."""
        raise NotImplementedError

    def process_frame(self, frame: Frame | ProtocolHeader) -> None:
        """Have pika handle a frame."""
        self._process_frame(frame)

    def read_in_large_pieces(self) -> None:
        """Take more from the socket at once than pika does; call it when the connection is open."""
        if self._transport is not None:
            cast("Any", self._transport)._MAX_RECV_BYTES = LARGEST_READ  # noqa: SLF001

    def _on_data_available(self, data_in: bytes) -> None:
        if not self.is_open:
            super()._on_data_available(data_in)
            return
        # All that comes is a sign of life, a part of a large body on a slow line as well.
        self.bytes_received += len(data_in)
        data = self._frame_buffer + data_in if self._frame_buffer else data_in
        self._frame_buffer = b""
        self._frame_buffer = self.read_frames(data)


def close_with_consumers(channel: Channel) -> None:
    """Close a channel, and its consumers with it.

    pika cancels them first. Then the next consumer of a queue begins before what the first one had
    in hand is in the queue again. Raises `ChannelWrongStateError`.
    """
    channel._consumers.clear()  # noqa: SLF001
    channel.close()


def fenced_blocking_connection(parameters: Parameters, by: TermFence) -> pika.BlockingConnection:
    """Connect; everything that is said, the first word included, is said under the fence.

    Raises what `pika.BlockingConnection` does.
    """

    class Fenced(FencedConnection):
        fence = by

    return pika.BlockingConnection(parameters, _impl_class=cast("Any", Fenced))
