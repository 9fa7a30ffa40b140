"""QUIC for trio: aioquic's protocol, over datagrams that come and go in batches."""

from __future__ import annotations

import contextlib
import math
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, TypeAlias

import trio
from aioquic.quic import events
from aioquic.quic.connection import QuicConnection
from aioquic.quic.packet import QuicErrorCode

from snaptun_trio import Address, PacketBatch, PacketTrain, SendBatchError, open_udp_channel

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, MutableMapping

    from aioquic.quic.configuration import QuicConfiguration

    from snaptun_trio import UdpChannel

Path: TypeAlias = tuple[Address, str | None]
"""Whom to send to, and from which of our addresses; `None` leaves that to the kernel."""

MAX_WAITING = 4096  # datagrams that one connection has not looked at yet
MAX_UNREAD = 16 << 20  # bytes that a stream's reader has not taken yet
CHUNK = 256 << 10  # bytes of a stream that QUIC is given at a time
TICK = 1e-6  # seconds: at the very time of a timer rounding can make aioquic find nothing due
LAST_WORDS = 1.0  # seconds that a full socket has to take the CONNECTION_CLOSE


@asynccontextmanager
async def connect(
    host: str, port: int, configuration: QuicConfiguration
) -> AsyncGenerator[Connection]:
    """A connection to a server, closed at the end of the block.

    Raises:
      ConnectionError: there is none, or the server does not want it; in an exception group, as
        all that comes out of a nursery.
    """
    async with await open_udp_channel(host, port) as channel, trio.open_nursery() as nursery:
        quic = QuicConnection(configuration=configuration)
        quic.connect((channel.address, None), now=trio.current_time())
        connection = Connection(quic, channel.send)
        nursery.start_soon(connection.run)
        nursery.start_soon(_receive, channel, connection)
        await connection.wait_connected()
        yield connection
        nursery.cancel_scope.cancel()  # upon which `run` closes it


async def _receive(channel: UdpChannel, connection: Connection) -> None:
    """Feed a connection with all that comes through a channel."""
    path = channel.address, None
    heard = False
    while True:
        try:
            batch = await channel.receive()
        except OSError:  # an ICMP message, which anybody can make up
            if not heard:
                raise
            continue
        heard = True
        connection.feed([(packet, path) for packet, _ in batch])


class Connection:
    """A connection and its streams. Feed it what comes; `run` does the rest.

    Args:
      quic: the protocol, of a client after its ``connect``.
      send: `UdpBatchSender.send` or `UdpChannel.send`.
      routes: where a server looks up which connection an id is of.
    """

    def __init__(
        self,
        quic: QuicConnection,
        send: Callable[[PacketBatch], Awaitable[None]],
        routes: MutableMapping[bytes, Connection] | None = None,
    ) -> None:
        self.quic = quic
        self.send = send
        self.routes: MutableMapping[bytes, Connection] = {} if routes is None else routes
        self.outcome: events.ConnectionTerminated | None = None
        """Why it ended, once it has."""
        self._waiting: list[tuple[bytes, Path]] = []
        self._woken = trio.Event()
        self._ready = trio.Event()
        self._streams: dict[int, Stream] = {}
        self._new, self.streams = trio.open_memory_channel[Stream](256)

    def feed(self, datagrams: Iterable[tuple[bytes, Path]]) -> None:
        """Take in what came, for the next turn of `run`. Never waits."""
        self._waiting.extend(datagrams)
        del self._waiting[MAX_WAITING:]  # QUIC sends it again
        self.wake()

    def wake(self) -> None:
        """There is something to do."""
        self._woken.set()

    async def run(self) -> None:
        """Receive, keep time and send, until the connection has ended; cancelled, it closes it."""
        error = QuicErrorCode.INTERNAL_ERROR
        try:
            while True:
                self._woken = trio.Event()
                self._take_in()
                if self.outcome is not None:
                    break
                await self._transmit()
                timer = self.quic.get_timer()
                with trio.move_on_at(math.inf if timer is None else timer + TICK):
                    await self._woken.wait()
        except trio.Cancelled:
            error = QuicErrorCode.NO_ERROR
            raise
        finally:
            if self.outcome is None:
                self.quic.close(error_code=error)
                with trio.move_on_after(LAST_WORDS, shield=True):
                    await self._transmit()
            self._end()

    def close(self, error_code: int = QuicErrorCode.NO_ERROR, reason: str = "") -> None:
        """Close it. `run` returns when the peer has had time to hear of it."""
        self.quic.close(error_code=error_code, reason_phrase=reason)
        self.wake()

    async def wait_connected(self) -> None:
        """Wait for the handshake.

        Raises:
          ConnectionError: the connection ended.
        """
        await self._ready.wait()
        if self.outcome is not None:
            raise ConnectionError(self.reason)

    @property
    def reason(self) -> str:
        """Why a stream of it can do no more."""
        if self.outcome is None:
            return "the peer has broken off the stream"
        return self.outcome.reason_phrase or "the connection has ended"

    def open_stream(self) -> Stream:
        """A new stream, both ways. The peer hears of it with the first bytes."""
        number = self.quic.get_next_available_stream_id()
        self.quic.send_stream_data(number, b"")  # or the next one would get the same number
        stream = self._streams[number] = Stream(self, number)
        return stream

    async def _transmit(self) -> None:
        """Send all that may be sent now, at once: packets of one size leave as trains."""
        by_path: dict[Path, list[bytes]] = {}
        for packet, path in self.quic.datagrams_to_send(now=trio.current_time()):
            by_path.setdefault(path, []).append(packet)
        if by_path:
            trains = [
                train
                for (address, local), packets in by_path.items()
                for train in PacketTrain.pack(packets, address, local_address=local)
            ]
            with contextlib.suppress(SendBatchError):  # as good as lost, and QUIC sees to that
                await self.send(PacketBatch(trains))
        for stream in self._streams.values():
            stream.look_if_sent()

    def _take_in(self) -> None:
        """All datagrams that wait, and then what is due."""
        now = trio.current_time()
        waiting, self._waiting = self._waiting, []
        for packet, path in waiting:
            self.quic.receive_datagram(packet, path, now=now)
        timer = self.quic.get_timer()
        if timer is not None and timer <= now:
            self.quic.handle_timer(now=now)
        while (event := self.quic.next_event()) is not None:
            self._happened(event)

    def _happened(self, event: events.QuicEvent) -> None:
        match event:
            case events.StreamDataReceived():
                stream = self._stream(event.stream_id)
                if stream.feed(event.data, ended=event.end_stream) > MAX_UNREAD:
                    # aioquic widens its window whether or not anybody reads.
                    self.close(QuicErrorCode.INTERNAL_ERROR, "a stream is not read")
            case events.StreamReset():
                self._stream(event.stream_id).break_off()
            case events.StopSendingReceived():
                self._stream(event.stream_id).stop_sending()
            case events.HandshakeCompleted():
                self._ready.set()
            case events.ConnectionIdIssued():
                self.routes[event.connection_id] = self
            case events.ConnectionIdRetired():
                self.routes.pop(event.connection_id, None)
            case events.ConnectionTerminated():
                self.outcome = event
            case _:
                pass

    def _stream(self, number: int) -> Stream:
        if number not in self._streams:
            stream = self._streams[number] = Stream(self, number)
            try:
                self._new.send_nowait(stream)
            except trio.WouldBlock:
                self.close(QuicErrorCode.STREAM_LIMIT_ERROR, "nobody takes the streams")
        return self._streams[number]

    def forget(self, stream: Stream) -> None:
        """Nothing more will come of a stream, and nobody wants it."""
        self._streams.pop(stream.number, None)

    def _end(self) -> None:
        if self.outcome is None:
            self.outcome = events.ConnectionTerminated(QuicErrorCode.NO_ERROR, None, "closed here")
        self._ready.set()
        self._new.close()
        for stream in list(self._streams.values()):
            stream.break_off()
            stream.stop_sending()


class Stream(trio.abc.HalfCloseableStream):
    """A stream of a connection: what any program knows that has to do with trio's streams."""

    def __init__(self, connection: Connection, number: int) -> None:
        self.number = number
        self._connection = connection
        self._quic = connection.quic
        self._unread = bytearray()
        self._came = trio.Event()
        self._sent = trio.Event()
        self._ended = self._broken = self._closed = False  # the receiving side
        self._finished = self._stopped = False  # the sending side

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """What came, at least one byte; none at the end."""
        while not (self._unread or self._ended or self._broken or self._closed):
            await self._came.wait()
            self._came = trio.Event()
        await trio.lowlevel.checkpoint()
        if self._closed:
            raise trio.ClosedResourceError
        if self._broken:
            raise trio.BrokenResourceError(self._connection.reason)
        taken = bytes(self._unread[:max_bytes])
        del self._unread[: len(taken)]
        return taken

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send, and wait until all but the last chunk has left."""
        view = memoryview(data)
        await trio.lowlevel.checkpoint()
        for start in range(0, len(view), CHUNK):
            await self.wait_send_all_might_not_block()
            self._write(bytes(view[start : start + CHUNK]))

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until all has left that was given to QUIC before."""
        while not self._all_sent():
            self._sent = trio.Event()
            await self._sent.wait()

    async def send_eof(self) -> None:
        """Say that nothing more will come from here."""
        await trio.lowlevel.checkpoint()
        if not self._finished:
            self._write(b"", end=True)

    async def aclose(self) -> None:
        """End both directions: what was sent still arrives, what comes is not wanted."""
        if not self._closed:
            self._closed = True
            self._came.set()
            if not (self._finished or self._stopped):
                self._write(b"", end=True)
            if self._ended or self._broken:
                self._connection.forget(self)
            else:
                self._quic.stop_stream(self.number, QuicErrorCode.NO_ERROR)
                self._connection.wake()
        await trio.lowlevel.checkpoint()

    def abort(self) -> None:
        """Tell the peer that what it got is not all, and close."""
        if not (self._finished or self._stopped):
            self._quic.reset_stream(self.number, QuicErrorCode.APPLICATION_ERROR)
            self._finished = True
            self._connection.wake()

    def _write(self, data: bytes, *, end: bool = False) -> None:
        if self._finished:
            raise trio.ClosedResourceError
        if self._stopped:
            raise trio.BrokenResourceError(self._connection.reason)
        self._finished = end
        self._quic.send_stream_data(self.number, data, end_stream=end)
        self._connection.wake()

    def _all_sent(self) -> bool:
        # aioquic has no public word for it. A stream that is not there any more is finished.
        streams = self._quic._streams  # pyright: ignore[reportPrivateUsage]
        stream = streams.get(self.number)
        return self._stopped or stream is None or stream.sender.buffer_is_empty

    # What the connection tells it.

    def feed(self, data: bytes, *, ended: bool) -> int:
        """Data came, or the end. Returns how much is not read yet."""
        self._ended |= ended
        if self._closed:
            if ended:
                self._connection.forget(self)
            return 0
        self._unread += data
        self._came.set()
        return len(self._unread)

    def break_off(self) -> None:
        """Nothing more will come, and what came is not all."""
        if not self._ended:
            self._broken = True
            self._came.set()
        if self._closed:
            self._connection.forget(self)

    def stop_sending(self) -> None:
        """The peer wants nothing more."""
        self._stopped = True
        self._sent.set()

    def look_if_sent(self) -> None:
        """Something was sent, of this stream or of others."""
        if not self._sent.is_set() and self._all_sent():
            self._sent.set()
