# UdpServer: one socket, and a task for each peer.
#
# One loop receives, sorts what came by peer, and starts a handler for each new one. It never waits
# for a handler: what does not fit a peer's queue is that peer's loss. All send through one sender,
# which puts together what they send in one turn. Who may come and who has to go is `_peer_table`'s
# matter, what a handler sees `_peer`'s.

from __future__ import annotations

import contextlib
import inspect
from typing import TYPE_CHECKING, final

import trio

from ._answers import Answers
from ._batch import batch_of, by_way, messages_of
from ._brief import brief
from ._errors import SendBatchError
from ._expiry import let_go_of_the_silent
from ._groups import leaves_of
from ._kernel._sockets import close_socket
from ._peer import PeerChannel
from ._peer_table import PeerTable
from ._plain import call, check_result
from ._rare_log import RareLog
from ._statistics import ServerStatistics

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from ._answers import Answer
    from ._batch import PacketBatch
    from ._channel import UdpChannel
    from ._peer_table import Eviction
    from ._receiver import UdpBatchReceiver
    from ._sender import UdpBatchSender
    from ._train import Address, Way

    Handler = Callable[[UdpChannel], Awaitable[object]]
    Admit = Callable[[Address, PacketBatch[Address]], bool]
    OnError = Callable[[Exception, UdpChannel], object]

# So many new peers are started before the other tasks have their turn: a start takes 30 us, and a
# call can bring two thousand spoofed addresses.
_STARTS_A_TURN = 64

# So many turns the handlers have before more is received, unless more is known to wait: in the
# first they take what came, in the second what they answer leaves. Without them each turn takes in
# the few datagrams that have come meanwhile, at the price of a batch: of one client's 20 questions
# at a time 3 came together, and each cost 2.5 times as much; of 20 clients' 500, three times.
_TURNS_TO_ANSWER = 2

# But what comes meanwhile has to fit the kernel's buffer, and a turn is as long as the program has
# it. So where a batch takes up more than a fourth of that, more is received at once, and the next
# one is of one turn. With the buffer that Linux grants by default a fourth was lost without this,
# of loads of which nothing need be: 80 datagrams of 1200 bytes, or 250 small ones, with each turn.
_MUCH_OF_BUFFER = 4
# What a datagram takes up there, more or less: memory in powers of two, and its headers.
_BYTES_A_BYTE = 2
_BYTES_A_DATAGRAM = 768

# A peer's part of a batch is copied if it is less than a fourth of it, or a handful of slow
# handlers would keep a slab of a megabyte each alive.
_COPIED_BELOW = 4


@final
class UdpServer:
    """What `serve_udp` runs: its peers, and what it has counted. Made by `serve_udp` only."""

    def __init__(
        self,
        receiver: UdpBatchReceiver,
        sender: UdpBatchSender,
        nursery: trio.Nursery,
        handler: Handler,
        *,
        max_peers: int,
        evict: Eviction,
        peer_queue: int,
        idle_timeout: float,
        answer: Answer | None,
        admit: Admit | None,
        on_error: OnError | None,
    ) -> None:
        self._sender = sender
        self._most_waiting = peer_queue
        self._receiver = receiver
        self._nursery = nursery
        self._handler = handler
        self._idle_timeout = idle_timeout
        self._answers = None
        if answer is not None:
            self._answers = Answers(answer, sender, self._ask_about_sender)
        self._admit = admit
        self._on_error = on_error
        self._local_address = receiver.local_address
        self._receive_buffer = receiver.statistics().receive_buffer_size  # 0 is unknown
        self._table: PeerTable[PeerChannel] = PeerTable(max_peers, evict)
        # The handlers of peers that are gone still run, but not without end.
        self._most_handlers = max_peers + max(_STARTS_A_TURN, max_peers // 8)
        self._channels: dict[PeerChannel, None] = {}  # of all handlers that run
        self._stopped = False
        self._received = self._answered = self._refused = self._shed = 0  # datagrams
        self._handing_out = 0  # datagrams of a batch that nobody has been given yet
        self._delivered = self._dropped = self._discarded = 0  # of handlers that have returned
        self._peers_admitted = self._peers_refused = self._peers_shed = 0
        self._peers_evicted = self._peers_expired = self._peers_unreachable = 0
        self._rare_log = RareLog()

    def __repr__(self) -> str:
        host, port = self._local_address[:2]
        return f"<UdpServer on {host} port {port}: {len(self._table)} peers>"

    @property
    def local_address(self) -> Address:
        """The address that the server is bound to, afterwards too, when it has ended."""
        return self._local_address

    @property
    def peers(self) -> tuple[UdpChannel, ...]:
        """The channels of all peers that there are now."""
        return tuple(self._table)

    def statistics(self) -> ServerStatistics:
        """A snapshot of what the server has counted; afterwards too, when it has ended."""
        each = [channel.statistics() for channel in self._channels]
        return ServerStatistics(
            peers=len(self._table),
            handlers=len(self._channels),
            peers_admitted=self._peers_admitted,
            peers_refused=self._peers_refused,
            peers_shed=self._peers_shed,
            peers_evicted=self._peers_evicted,
            peers_expired=self._peers_expired,
            peers_unreachable=self._peers_unreachable,
            datagrams_received=self._received,
            datagrams_delivered=self._delivered + sum(one.datagrams_delivered for one in each),
            datagrams_waiting=self._handing_out + sum(one.datagrams_waiting for one in each),
            datagrams_dropped=self._dropped + sum(one.datagrams_dropped for one in each),
            datagrams_discarded=self._discarded + sum(one.datagrams_discarded for one in each),
            datagrams_answered=self._answered,
            datagrams_refused=self._refused,
            datagrams_shed=self._shed,
            receiver=self._receiver.statistics(),
            sender=self._sender.statistics(),
        )

    # -- receiving

    @trio.lowlevel.enable_ki_protection
    async def _receive_all(self) -> None:
        busy = False
        with trio.CancelScope() as scope, self._receiver._waits_in(scope):
            async for batch in self._receiver:
                was_busy, busy = busy, self._receiver._filled or self._is_much(batch)
                left = self._take_in(batch)
                for_handlers = len(left) > 0
                if for_handlers:
                    await self._hand_out(left)
                del batch, left  # or they would keep their slab while the next is waited for
                if self._answers is not None and not self._sender.is_empty:
                    await self._send_answers()
                # After a full batch comes what was left over, which says nothing of the next one.
                if for_handlers and not (busy or was_busy):
                    for _ in range(_TURNS_TO_ANSWER):
                        await trio.lowlevel.checkpoint()

    @trio.lowlevel.enable_ki_protection
    async def _send_what_nobody_waits_for(self) -> None:  # noqa: ASYNC910
        with contextlib.suppress(trio.ClosedResourceError):  # of which receiving tells
            while True:
                await self._sender._unattended.attend()
                self._note_untold()

    def _note_untold(self) -> None:
        """See what could not be sent for which no handler waits."""
        for failure in self._sender._take_unclaimed():
            error, address = failure.error, failure.train.address
            peer = None if address is None else self._table.get(address)
            if peer is not None:
                peer._learn_sizes([failure])
            message = "an answer could not be sent: %s; it was for %s"
            self._rare_log.warn(error.errno or 0, message, error, address)

    def _is_much(self, batch: PacketBatch) -> bool:
        """Whether thrice as much might not fit the kernel's buffer."""
        taken = batch.nbytes * _BYTES_A_BYTE + len(batch) * _BYTES_A_DATAGRAM
        return taken * _MUCH_OF_BUFFER > self._receive_buffer > 0

    async def _send_answers(self) -> None:  # noqa: ASYNC910
        """Send what was answered at once, and wait for the socket if need be: so the server takes
        in no more than can be answered."""
        await self._sender._shared.until_over(self._sender._queue.last_number)
        self._note_untold()

    def _take_in(self, batch: PacketBatch[Address]) -> PacketBatch[Address]:
        """Count what has come, and have queued what can be answered at once. Returns what is left
        for handlers."""
        self._received += len(batch)
        self._handing_out = len(batch)
        if self._answers is None:
            return batch
        try:
            answers, failed, left = self._answers.settle(batch)
            if len(self._table) and len(left) < len(batch):  # peers that ask are not silent
                now = trio.current_time()
                for address in messages_of(batch)[0].by_address():
                    if address is not None:
                        self._table.heard_from(address, now)
            settled = len(batch) - len(left)
            answered, discarded = self._answered + settled - failed, self._discarded + failed
            if answers:
                self._sender._queue.put_all(answers, owned=False)
        except BaseException:
            self._discard_what_is_left()
            raise
        self._handing_out -= settled
        self._answered, self._discarded = answered, discarded
        return left

    async def _hand_out(self, batch: PacketBatch[Address]) -> None:  # noqa: ASYNC910
        """Give each peer what it sent."""
        try:
            now, heard_from = trio.current_time(), self._table.heard_from
            parts = messages_of(batch)[0].by_address()
            least = batch.nbytes // _COPIED_BELOW if len(parts) > 1 else 0
            started = 0
            for address, messages in parts.items():
                assert address is not None, "whatever was received came from somewhere"
                part = batch_of(messages.detached() if messages.nbytes < least else messages)
                for piece in (part,) if messages.one_way else by_way(part):
                    peer = heard_from(address, now)
                    if peer is not None:
                        peer.put(piece)
                    elif self._let_in(address, piece, now):
                        started += 1
                    self._handing_out -= len(piece)
                if started >= _STARTS_A_TURN:
                    # Shielded: what the kernel has handed over is not lost to a cancellation.
                    await trio.lowlevel.cancel_shielded_checkpoint()
                    started = 0
        finally:
            self._discard_what_is_left()

    def _discard_what_is_left(self) -> None:
        """Where the program raised, nobody gets the rest of a batch."""
        self._discarded += self._handing_out
        self._handing_out = 0

    def _let_in(self, address: Address, first: PacketBatch[Address], now: float) -> bool:
        """Start a handler for a new peer, if there is room and nothing speaks against it."""
        full = self._table.is_full
        victim = self._table.next_to_go() if full else None
        if (full and victim is None) or len(self._channels) >= self._most_handlers:
            self._peers_shed += 1
            self._shed += len(first)
            return False
        peer = PeerChannel(self, address, now)
        peer.note_way(
            messages_of(first)[0].way_back()
        )  # the handler may speak before it has received anything
        if not self._admits(peer, first):
            self._peers_refused += 1
            self._refused += len(first)
            return False
        self._nursery.start_soon(self._run, peer)  # it raises where the nursery is over
        if victim is not None and self._table.is_full:  # ``admit`` may have closed somebody
            self._peers_evicted += 1
            self._let_go(victim)
        peer.established = len(first) > 1
        self._table.add(peer)
        self._channels[peer] = None
        self._peers_admitted += 1
        peer.put(first)
        return True

    def _admits(self, peer: PeerChannel, first: PacketBatch[Address]) -> bool:
        if self._admit is None:
            return True
        try:
            verdict: object = call(self._admit, peer.address, first)
            check_result("admit", verdict)
        except Exception as error:
            self._ask_about(error, peer)
            return False
        return bool(verdict)

    def _ask_about_sender(self, error: Exception, address: Address, way: Way | None) -> None:
        """The same of what one sent who need not be a peer."""
        peer = self._table.get(address) or PeerChannel(self, address, trio.current_time())
        peer.note_way(way)
        self._ask_about(error, peer)

    def _ask_about(self, error: Exception, peer: PeerChannel) -> None:
        """Let the program say what an error is; without a word of it, it goes up."""
        if self._on_error is None:
            raise error
        check_result("on_error", call(self._on_error, error, peer))

    # -- the peers' comings and goings

    @trio.lowlevel.enable_ki_protection
    async def _run(self, peer: PeerChannel) -> None:  # noqa: ASYNC910
        try:
            await _call(self._handler, peer)
        except Exception as error:
            if not self._settles(error, peer):
                raise
        except BaseExceptionGroup as group:
            # Cancelled, and something was amiss besides: the cancellation goes up alone.
            errors, rest = group.split(Exception)
            if errors is None or rest is None or not self._settles(errors, peer):
                raise
            raise rest from None
        finally:
            peer.close()
            counted = peer.statistics()
            self._delivered += counted.datagrams_delivered
            self._dropped += counted.datagrams_dropped
            self._discarded += counted.datagrams_discarded
            del self._channels[peer]
            self._close_if_done()

    def _settles(self, error: Exception, peer: PeerChannel) -> bool:
        """See to what a handler raised. Returns whether it ends the peer only."""
        about_peer = peer.is_about_this(error)
        gone = about_peer and all(isinstance(leaf, trio.EndOfChannel) for leaf in leaves_of(error))
        if gone:  # which is how a handler that only asks for the next packet ends
            return True
        self._peers_unreachable += about_peer
        if self._on_error is not None:
            self._ask_about(error, peer)
        elif about_peer:
            self._log_unreachable(peer, error)
        else:
            return False
        return True

    def _log_unreachable(self, peer: PeerChannel, error: Exception) -> None:
        """The handler did not expect that its peer cannot be reached.

        Anybody can bring that about with a forged source address, and must not end the server.
        """
        number = next((leaf.errno for leaf in leaves_of(error) if isinstance(leaf, OSError)), None)
        message = "a handler ended because its peer cannot be sent to: %s; one is %s"
        self._rare_log.warn(number or 0, message, error, peer.address)

    def _let_go(self, peer: PeerChannel) -> None:
        """Tell a peer's handler that nothing more will come."""
        self._table.remove(peer)
        peer.end()

    def _forget(self, peer: PeerChannel) -> None:
        """For the peer: its handler has done with it."""
        self._table.remove(peer)

    async def _let_go_of_the_silent(self) -> None:
        await let_go_of_the_silent(self._table, self._idle_timeout, self._expire)

    def _expire(self, peer: PeerChannel) -> None:
        self._peers_expired += 1
        self._let_go(peer)

    def _stop(self) -> None:
        """Receive nothing more. Handlers that still run may send to the end."""
        self._stopped = True
        self._receiver.close()
        for peer in tuple(self._table):
            self._let_go(peer)
        self._close_if_done()

    def _close_if_done(self) -> None:
        if self._stopped and not self._channels:
            if not self._sender.is_empty:
                self._flush_what_goes()
            self._sender.close()
            close_socket(self._sender.socket)

    def _flush_what_goes(self) -> None:
        # What a cancelled handler left in the queue is sent as far as the socket takes it; the
        # rest is counted as discarded. Refusals are counted as well, and nobody waits for them.
        with contextlib.suppress(trio.WouldBlock, trio.ClosedResourceError, SendBatchError):
            self._sender.try_flush_best_effort()


@trio.lowlevel.disable_ki_protection
async def _call(handler: Handler, channel: UdpChannel) -> None:
    """The handler is the program's: Control-C interrupts it."""
    started: object = handler(channel)
    if not inspect.isawaitable(started):  # what a function is, only calling it tells for certain
        raise TypeError(f"handler is an async function, not {brief(handler, 80)}")
    await started
