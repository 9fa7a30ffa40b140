# The cookbook's programs on asyncio's own loop or uvloop's: programs by themselves.
#
# Each does what the one of docs/examples does, with the same buffers, and shares with it what has
# no part in the network. `python _peer_protocols.py LOOP PROGRAM HOST PORT ...`

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import struct
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

sys.path.insert(0, str(Path(__file__).parents[3] / "docs" / "examples"))

from dns_message import answer_to
from dns_waiting import PATIENCE, Waiting
from rtp_recorder import FILE_HEADER, HEADERS
from syslog_collector import MESSAGE

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

BUFFER = 4 << 20  # as `open_udp_socket` asks for
SO_TIMESTAMPNS = 35  # asm-generic/socket.h
TIME = struct.Struct("@ll")
MOST_PEERS, MOST_WAITING, IDLE_TIMEOUT = 10_000, 256, 60.0  # the defaults of serve_udp
LOOK_INTERVAL = 1.0  # seconds
MOST_A_TURN = 256  # datagrams, as many as a receiver takes with one call

Peer: TypeAlias = tuple[str | Any, int]


def open_socket(local: Peer | None, remote: Peer | None = None) -> socket.socket:
    """As the examples' sockets are."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setblocking(False)
    for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
        sock.setsockopt(socket.SOL_SOCKET, option, BUFFER)
    sock.bind(local or ("0.0.0.0", 0))
    if remote is not None:
        sock.connect(remote)
    return sock


class Protocol(asyncio.DatagramProtocol):
    """What all have in common."""

    transport: asyncio.DatagramTransport

    def connection_made(self, transport: asyncio.DatagramTransport) -> None:  # type: ignore[override]
        """Keep the transport for sending."""
        self.transport = transport


async def endpoint(protocol: Protocol, local: Peer | None, remote: Peer | None = None) -> None:
    """Open a socket for a protocol."""
    loop = asyncio.get_running_loop()
    sock = open_socket(local, remote)
    await loop.create_datagram_endpoint(lambda: protocol, sock=sock)


class Collector(Protocol):
    """Prints messages, and flushes once for what comes in one turn of the loop."""

    _flushes = False

    def datagram_received(self, data: bytes, addr: Peer) -> None:
        """A message."""
        if MESSAGE.match(data):
            text = data.replace(b"\n", b"\\n")
            sys.stdout.buffer.write(b"%b %b\n" % (addr[0].encode(), text))
            if not self._flushes:
                self._flushes = True
                asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._flushes = False
        sys.stdout.flush()


async def collect(host: str, port: str) -> None:
    """The collector of syslog, without the account of what is dropped."""
    await endpoint(Collector(), (host, int(port)))


class FanOut(Protocol):
    """Sends everything to all."""

    def __init__(self, backends: list[Protocol]) -> None:
        self._backends = backends

    def datagram_received(self, data: bytes, addr: Peer) -> None:
        """A client's datagram."""
        for backend in self._backends:
            backend.transport.sendto(data)


async def fan_out(host: str, port: str, *targets: str) -> None:
    """The fan-out for statsd."""
    backends = []
    for target in targets:
        there, _, its_port = target.rpartition(":")
        backend = Protocol()
        await endpoint(backend, None, (there, int(its_port)))
        backends.append(backend)
    await endpoint(FanOut(backends), (host, int(port)))


class Front(Protocol):
    """The forwarder's side of the clients."""

    def __init__(self, waiting: Waiting, back: Back) -> None:
        self._waiting, self._back = waiting, back
        self._loop = asyncio.get_running_loop()

    def datagram_received(self, data: bytes, addr: Peer) -> None:
        """A question."""
        message = self._waiting.ask(data, addr, self._loop.time())
        if message:
            self._back.transport.sendto(message)


class Back(Protocol):
    """The forwarder's side of the server."""

    front: Front

    def __init__(self, waiting: Waiting) -> None:
        self._waiting = waiting

    def datagram_received(self, data: bytes, addr: Peer) -> None:
        """An answer."""
        answered = self._waiting.answer(data)
        if answered:
            self.front.transport.sendto(*answered)


async def forward(host: str, port: str, server: str, server_port: str) -> None:
    """The DNS forwarder."""
    waiting, loop = Waiting(), asyncio.get_running_loop()
    back = Back(waiting)
    back.front = Front(waiting, back)
    await endpoint(back, None, (server, int(server_port)))
    await endpoint(back.front, (host, int(port)))

    def ask_again() -> None:
        for message in waiting.late(loop.time()):
            back.transport.sendto(message)
        loop.call_later(PATIENCE, ask_again)

    loop.call_later(PATIENCE, ask_again)


async def record(host: str, port: str, path: str) -> None:
    """The recorder of RTP. Protocols are not told the kernel's time, so it reads for itself."""
    sock = open_socket((host, int(port)))
    sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
    target_host, target_port = socket.inet_aton(host), int(port)
    file = open(path, "wb", buffering=0)  # noqa: ASYNC230, SIM115
    file.write(FILE_HEADER)

    def read() -> None:
        found: list[bytes] = []
        for _ in range(MOST_A_TURN):
            try:
                packet, controls, _, source = sock.recvmsg(65_536, 64)
            except BlockingIOError:
                break
            if len(packet) >= 8 and packet[0] >> 6 == 2:
                seconds, nanoseconds = TIME.unpack(controls[0][2])
                size = len(packet) + 28
                times = seconds, nanoseconds, size, size
                ip = 0x45, 0, size, 0, 64, 17, 0, socket.inet_aton(source[0]), target_host
                udp = source[1], target_port, size - 20, 0
                found += HEADERS.pack(*times, *ip, *udp), packet
        file.write(b"".join(found))

    asyncio.get_running_loop().add_reader(sock, read)


class Server(Protocol):
    """The tutorial's DNS server."""

    def datagram_received(self, data: bytes, addr: Peer) -> None:
        """A question."""
        reply = answer_to(data)
        if reply is not None:
            self.transport.sendto(reply, addr)


async def serve(host: str, port: str) -> None:
    """Answer DNS questions."""
    await endpoint(Server(), (host, int(port)))


class Asker:
    """A peer of the next one, and the task that answers it."""

    def __init__(self, server: TaskServer, address: Peer) -> None:
        self.questions: asyncio.Queue[bytes] = asyncio.Queue(MOST_WAITING)
        self.heard = 0.0
        self.task = asyncio.create_task(self._answer(server, address))

    async def _answer(self, server: TaskServer, address: Peer) -> None:
        try:
            while True:
                reply = answer_to(await self.questions.get())
                if reply is not None:
                    server.transport.sendto(reply, address)
        except Exception as error:
            logging.warning("%s: %r", address, error)
        finally:
            server.peers.pop(address, None)


class TaskServer(Protocol):
    """The same with a task for each peer, as `serve_udp` has: at most so many, each with a bounded
    queue, until it is silent for too long."""

    def __init__(self) -> None:
        self.peers: dict[Peer, Asker] = {}
        self.dropped = self.shed = 0
        self._loop = asyncio.get_running_loop()

    def datagram_received(self, data: bytes, addr: Peer) -> None:
        """A question."""
        asker = self.peers.get(addr)
        if asker is None:
            if len(self.peers) >= MOST_PEERS:
                self.shed += 1
                return
            asker = self.peers[addr] = Asker(self, addr)
        asker.heard = self._loop.time()
        try:
            asker.questions.put_nowait(data)
        except asyncio.QueueFull:
            self.dropped += 1

    def expire(self) -> None:
        """End the tasks of peers that are silent, now and from time to time."""
        silent_since = self._loop.time() - IDLE_TIMEOUT
        for asker in [one for one in self.peers.values() if one.heard < silent_since]:
            asker.task.cancel()
        self._loop.call_later(LOOK_INTERVAL, self.expire)


async def serve_with_tasks(host: str, port: str) -> None:
    """Answer DNS questions, a task for each peer."""
    server = TaskServer()
    await endpoint(server, (host, int(port)))
    server.expire()


PROGRAMS: dict[str, Callable[..., Awaitable[None]]] = {
    "syslog_collector": collect,
    "statsd_fan_out": fan_out,
    "dns_forwarder": forward,
    "rtp_recorder": record,
    "dns_server": serve,
    "dns_server with tasks": serve_with_tasks,
}


async def main(program: str, *arguments: str) -> None:
    """Run one until SIGTERM."""
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    await PROGRAMS[program](*arguments)
    print("running on port", arguments[1], flush=True)
    await ended.wait()


def loop_factory(name: str) -> Callable[[], asyncio.AbstractEventLoop] | None:
    """The maker of the loop."""
    if name == "uvloop":
        import uvloop

        return uvloop.new_event_loop
    return None


if __name__ == "__main__":
    # Freeing one large block teaches malloc not to map each large block anew. Without it asyncio,
    # whose transport asks for 256 KiB a datagram, would look much slower than it mostly is.
    bytearray(1 << 19)
    with asyncio.Runner(loop_factory=loop_factory(sys.argv[1])) as runner:
        runner.run(main(*sys.argv[2:]))
