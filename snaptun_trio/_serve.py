# serve_udp: a port, and a task for each peer that sends to it.
#
# It checks what is asked for, opens the socket, and puts receiver, sender and server together. What
# the server does is in `_server`.

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

import trio

from ._brief import brief
from ._expiry import check_seconds
from ._groups import raise_single
from ._kernel._sockets import check_socket, close_socket, is_wildcard
from ._peer_table import EVICTIONS
from ._plain import check_plain
from ._receiver import UdpBatchReceiver
from ._sender import UdpBatchSender
from ._server import UdpServer
from ._sockets import DEFAULT_BUFFER, open_udp_socket, refuse_options
from ._train import check_flags, check_int

if TYPE_CHECKING:
    import socket as stdlib_socket

    from ._answers import Answer
    from ._kernel._interface import Socket
    from ._peer_table import Eviction
    from ._server import Admit, Handler, OnError

# Datagrams that the shared sender's queue holds, more or less what one call takes in.
_QUEUE = 1024


def _check_handler(handler: object) -> None:
    if not callable(handler):
        raise TypeError(f"handler is an async function, not {brief(handler, 80)}")
    if inspect.isgeneratorfunction(handler) or inspect.isasyncgenfunction(handler):
        raise TypeError(f"handler is an async function, not a generator: {brief(handler, 80)}")


async def serve_udp(  # noqa: ASYNC910
    handler: Handler,
    port: int | trio.socket.SocketType | stdlib_socket.socket,
    *,
    host: str | None = None,
    handler_nursery: trio.Nursery | None = None,
    max_peers: int = 10_000,
    evict: Eviction = "strangers",
    peer_queue: int = 256,
    idle_timeout: float = 60.0,
    answer: Answer | None = None,
    admit: Admit | None = None,
    on_error: OnError | None = None,
    reuse_port: bool = False,
    receive_buffer: int = DEFAULT_BUFFER,
    send_buffer: int = DEFAULT_BUFFER,
    fragment: bool = False,
    gro: bool = True,
    gso: bool = True,
    ecn: bool = False,
    timestamps: bool = False,
    task_status: trio.TaskStatus[UdpServer] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve UDP on a port, with a task for each peer, in the manner of `trio.serve_tcp`.

    For each new peer ``handler(channel)`` is started. There is one socket, one loop that receives
    and one sender for all; what handlers send in one turn of the scheduler leaves together. It runs
    until it is cancelled::

        async def echo(channel: UdpChannel) -> None:
            async for batch in channel:
                await channel.send(batch)

        await serve_udp(echo, 5353)

    **No peer can hold up another.** What a handler has not taken waits in its peer's queue; what
    does not fit there is dropped, the newest first, and counted for that peer and in all.

    **Strangers** cannot grow it. There are at most ``max_peers`` peers. For one more, a stranger
    has to go: of those that sent only a single datagram, the one that was silent for longest. Peers
    that sent more are never given up for a newcomer's sake; where all are of that kind, the
    newcomer is shed, and counted. Handlers of peers that are gone may go on for a while, an eighth
    of ``max_peers`` of them and 64 at least; beyond that, newcomers are shed as well.

    **A peer's end**: a peer that is silent for ``idle_timeout``, or that had to go, gets the end of
    its channel once its handler has taken what waits. A peer whose handler has returned, or closed
    the channel, is forgotten; what it sends later is a new peer's.

    **Errors**: as with `trio.serve_tcp`, an exception of a handler ends the nursery that it runs
    in, and so everything, unless there is ``on_error``. But for two, which any stranger can bring
    about, and which end the peer only. That the kernel refuses what is sent to it (the source
    address may be forged) is counted, and without ``on_error`` logged to the logger
    ``snaptun_trio``, at most once a minute for each errno. `trio.EndOfChannel` of its channel is
    how a handler ends that only ever asks for the next packet.

    **On a wildcard address** answers leave from the address that was asked.

    **Shutdown**: if cancelled, it stops receiving. Handlers in a ``handler_nursery`` of the
    program's get the end of their channels and can still send; the socket is closed when the last
    of them returns. Without one they are cancelled as well. What `UdpChannel.send` accepted is
    sent, as far as the socket takes it at once.

    Args:
      handler: an async function that is given the peer's `UdpChannel`, which is closed when it
        returns.
      port: the port to bind, 0 for any; or a bound UDP socket, which is closed at the end.
      host: the address or name to bind to; `None` is every address of the machine, of IPv6 and of
        IPv4.
      handler_nursery: where handlers run; by default in one of its own.
      max_peers: how many peers there may be at a time.
      evict: who makes room for a new peer: ``"strangers"`` as above, ``"oldest"``, which after
        them is whoever was silent for longest, or ``"nobody"``.
      peer_queue: how many datagrams may wait for one handler.
      idle_timeout: seconds; `math.inf` for never.
      answer: a plain function ``(packet, address)`` that is asked about each datagram first, in
        their order. What it returns is sent at once: a packet, or several in an iterable, or none
        for ``()``. For `None` the datagram goes to the peer's handler. So what can be answered
        without waiting costs no task, and a stranger no place among the peers.
      admit: a plain function ``(address, first_batch) -> bool`` that decides before a handler is
        started. What it refuses is counted.
      on_error: a plain function ``(exception, channel) -> None`` that is called with what a
        handler, ``answer`` or ``admit`` raises, also where nothing can be sent to the peer. Then
        the server goes on. Where there is no peer yet, ``channel`` is one that was made for the
        address.
      reuse_port, receive_buffer, send_buffer, fragment: see `open_udp_socket`.
      gro, ecn, timestamps: see `UdpBatchReceiver`.
      gso: see `UdpBatchSender`.
      task_status: ``server: UdpServer = await nursery.start(serve_udp, ...)``.

    Raises:
      OSError: the address cannot be bound, or the socket failed.
      TypeError, ValueError: an argument has the wrong type, or a number is out of its range.
      Exception: what a handler, ``answer``, ``admit`` or ``on_error`` raises. A single one of a
        nursery of its own is not wrapped in a group.
    """
    _check_handler(handler)
    if answer is not None:
        check_plain("answer", answer, "packet", "address")
    if admit is not None:
        check_plain("admit", admit, "address", "first_batch")
    if on_error is not None:
        check_plain("on_error", on_error, "exception", "channel")
    check_int("max_peers", max_peers, 1, 2**31)
    check_int("peer_queue", peer_queue, 1, 2**31)
    if evict not in EVICTIONS:
        raise ValueError(f"evict is one of {', '.join(EVICTIONS)}, not {brief(evict)}")
    check_seconds("idle_timeout", idle_timeout)
    if not isinstance(handler_nursery, trio.Nursery | None):
        raise TypeError(f"handler_nursery is a trio.Nursery, not {brief(handler_nursery)}")
    check_flags(gro=gro, gso=gso, ecn=ecn, timestamps=timestamps)
    if isinstance(port, int):
        check_int("port", port, 0, 0xFFFF)
        if not isinstance(host, str | None):
            raise TypeError(f"host is a str, not {brief(host)}")
        sock: Socket = await open_udp_socket(
            (host, port),
            reuse_port=reuse_port,
            receive_buffer=receive_buffer,
            send_buffer=send_buffer,
            fragment=fragment,
        )
    else:
        sock = check_socket(port, "a port (an int; host is another argument) or a socket")
        refuse_options(
            host=(host, None),
            reuse_port=(reuse_port, False),
            receive_buffer=(receive_buffer, DEFAULT_BUFFER),
            send_buffer=(send_buffer, DEFAULT_BUFFER),
            fragment=(fragment, False),
        )
    server = None
    try:
        receiver = UdpBatchReceiver(
            sock, gro=gro, ecn=ecn, packet_info=is_wildcard(sock), timestamps=timestamps
        )
        sender = UdpBatchSender(sock, batch_size=_QUEUE, gso=gso)
        async with trio.open_nursery() as nursery:
            server = UdpServer(
                receiver,
                sender,
                handler_nursery or nursery,
                handler,
                max_peers=max_peers,
                evict=evict,
                peer_queue=peer_queue,
                idle_timeout=idle_timeout,
                answer=answer,
                admit=admit,
                on_error=on_error,
            )
            try:
                nursery.start_soon(server._let_go_of_the_silent)
                nursery.start_soon(server._send_what_nobody_waits_for)
                task_status.started(server)
                await server._receive_all()
            finally:
                server._stop()  # handlers that do not heed a cancellation hear of it
    except BaseExceptionGroup as group:
        raise_single(group)
    finally:
        if server is None:
            close_socket(sock)
