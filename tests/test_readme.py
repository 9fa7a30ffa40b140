# What the README and the docs promise: their commands and examples are the real ones, and work.
#
# The examples are files in docs/examples; those that talk run here over real loopback sockets. This
# file must not know how the library does it.

from __future__ import annotations

import contextlib
import errno
import re
import signal
import socket
import subprocess
import sys
from collections import Counter
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from snaptun_trio import PacketBatch, PacketTrain, UdpBatchReceiver
from snaptun_trio.testing import ScriptedSocket

from . import ends
from .examples import EXAMPLES, ROOT, example

if TYPE_CHECKING:
    from collections.abc import Iterator

    from snaptun_trio import Address

README = (ROOT / "README.md").read_text(encoding="utf-8")
HANG_GUARD = 60  # seconds; only a hang takes that long


def blocks(language: str) -> list[str]:
    """The README's code blocks in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


async def bound_socket() -> trio.socket.SocketType:
    sock = trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    await sock.bind(("127.0.0.1", 0))
    return sock


@pytest.fixture
def stdlib_socket() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.settimeout(HANG_GUARD)
        yield sock


@pytest.fixture
def stack() -> Iterator[contextlib.ExitStack]:
    """Closes what a test has opened."""
    with contextlib.ExitStack() as opened:
        yield opened


def test_readme_shows_the_first_example_as_it_stands() -> None:
    assert blocks("python") == [(EXAMPLES / "echo_server.py").read_text(encoding="utf-8")]


def test_ci_runs_exactly_the_readmes_test_command() -> None:
    demo, test = (block.strip() for block in blocks("sh"))
    # Without -P it would run the checkout, in which nothing is compiled.
    assert "-P -m snaptun_trio demo" in demo
    assert "nox" in test
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert test in [line.strip() for line in script.splitlines()]


def test_every_example_is_shown_in_the_docs() -> None:
    pages = "".join(page.read_text(encoding="utf-8") for page in (ROOT / "docs").glob("*.rst"))
    shown = set(re.findall(r"literalinclude:: examples/(\w+)\.py", pages))
    assert shown == {path.stem for path in EXAMPLES.glob("*.py")}


def test_the_design_page_lists_every_file_of_the_package() -> None:
    page = (ROOT / "docs" / "design.rst").read_text(encoding="utf-8")
    rooms = page.partition("    snaptun_trio/\n")[2].partition("\n\n")[0]
    listed = re.findall(r"^ {6,}(\w+\.(?:py|pyi|c|h)) ", rooms, re.MULTILINE)
    package = ROOT / "snaptun_trio"
    there = [
        path.name
        for path in package.rglob("*")
        if path.suffix in (".py", ".pyi", ".c", ".h") and path.parent.name != "_cli"
    ]
    assert sorted(listed) == sorted(there)


@pytest.mark.core
def test_echo_example_echoes_as_a_program(stdlib_socket: socket.socket) -> None:
    command = [sys.executable, str(EXAMPLES / "echo.py")]
    with ends.children_take_ctrl_c():
        program = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
    with program:
        try:
            assert program.stdout is not None
            announced = re.fullmatch(r"echoing on (\S+) port (\d+)\n", program.stdout.readline())
            assert announced is not None
            address = (announced[1], int(announced[2]))
            packets = [b"", b"one", b"x" * 1200, bytes(range(256))]
            for packet in packets:
                stdlib_socket.sendto(packet, address)
            answers = [stdlib_socket.recvfrom(65_536) for _ in packets]
            assert answers == [(packet, address) for packet in packets]
        finally:
            program.send_signal(signal.SIGINT)
            try:
                _, stderr = program.communicate(timeout=HANG_GUARD)
            finally:
                program.kill()  # or leaving the block would wait for it for ever
    assert "KeyboardInterrupt" in stderr  # ended by us, not by an error of its own


def test_stop_example_ends_in_order(stdlib_socket: socket.socket) -> None:
    command = [sys.executable, str(EXAMPLES / "stop.py")]
    packets = [b"packet %d" % number for number in range(20)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as program:
        try:
            assert program.stdout is not None
            announced = re.fullmatch(r"echoing on (\S+) port (\d+)\n", program.stdout.readline())
            assert announced is not None
            for packet in packets:
                stdlib_socket.sendto(packet, (announced[1], int(announced[2])))
            assert [stdlib_socket.recv(65_536) for _ in packets] == packets
            program.send_signal(signal.SIGINT)
            stdout, stderr = program.communicate(timeout=HANG_GUARD)
        finally:
            program.kill()  # or leaving the block would wait for it for ever
    assert (program.returncode, stderr) == (0, "")
    assert stdout == "20 received, 20 sent\n"


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.5", "::1"])
async def test_answer_example_answers_from_the_address_that_was_asked(
    backend: str, nursery: trio.Nursery, host: str
) -> None:
    answer = example("answer")
    port: int = await nursery.start(answer.serve, 0)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with trio.socket.socket(family, socket.SOCK_DGRAM) as client:
        await client.connect((host, port))  # gets datagrams from nowhere else
        await client.send(b"12")  # no question
        await client.send(b"12abc")
        with trio.fail_after(HANG_GUARD):
            assert await client.recv(65_536) == b"12cba"
    nursery.cancel_scope.cancel()


async def test_receive_examples_count_and_measure() -> None:
    receive = example("receive")
    with await bound_socket() as sock, await bound_socket() as one, await bound_socket() as two:
        target = sock.getsockname()
        for peer, sizes in ((one, (5, 50)), (two, (500, 0, 7))):
            for size in sizes:
                await peer.sendto(b"x" * size, target)
        with trio.fail_after(HANG_GUARD):
            seen = await receive.count_by_peer(sock, wanted=5)
            assert seen == Counter({one.getsockname(): 2, two.getsockname(): 3})
            await one.sendto(b"four", target)
            assert await receive.longest_by_peer(sock) == {one.getsockname(): 4}


async def test_many_sockets_example_receives_on_all_until_all_are_closed() -> None:
    many = example("many_sockets")
    sockets = [await bound_socket() for _ in range(5)]
    seen: list[tuple[object, bytes]] = []
    complaints: list[str] = []

    def look_at(receiver: UdpBatchReceiver, packet: bytes, address: Address) -> None:
        seen.append((receiver.socket, packet))

    with await bound_socket() as peer, trio.fail_after(HANG_GUARD):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(
                lambda: many.receive_on_all(sockets, look_at, complain=complaints.append)
            )
            for number, sock in enumerate(sockets):
                await peer.sendto(b"%d" % number, sock.getsockname())
                while len(seen) <= number:
                    await trio.lowlevel.checkpoint()
                sock.close()
    assert seen == [(sock, b"%d" % number) for number, sock in enumerate(sockets)]
    assert len(complaints) == len(sockets)
    assert all("the socket was closed" in complaint for complaint in complaints)


async def test_send_example_reaches_all_but_the_unreachable() -> None:
    send = example("send")
    packets = [b"packet %d" % number for number in range(100)]
    nowhere = ("127.0.0.1", 0)  # nothing can be sent to port 0
    with await bound_socket() as sock, await bound_socket() as one, await bound_socket() as two:
        targets: list[Address] = [one.getsockname(), nowhere, two.getsockname()]
        with trio.fail_after(HANG_GUARD):
            unreachable = await send.send_to_all(sock, packets, targets)
            assert set(unreachable) == {nowhere}
            for peer in (one, two):
                assert await collect(peer, len(packets)) == packets


async def test_send_example_answers_each_datagram_but_port_0s(nursery: trio.Nursery) -> None:
    send = example("send")
    sock = ScriptedSocket()
    nowhere, peer = ("192.0.2.1", 0), ("192.0.2.1", 9)
    questions = [b"%d" % number for number in range(100)]  # more than the queue holds
    sock.answer = lambda packets, address: errno.EINVAL if address == nowhere else 0
    pairs = [(b"from nowhere", nowhere), *((question, peer) for question in questions)]
    sock.receives.append(PacketBatch.pack(pairs))
    nursery.start_soon(send.answer_each, sock, lambda question: b"re: " + question)
    with trio.fail_after(HANG_GUARD):
        while len(sock.sent) < len(questions):
            await trio.lowlevel.checkpoint()
    assert sock.sent == [(b"re: " + question, peer) for question in questions]
    nursery.cancel_scope.cancel()


async def test_send_example_resolves_a_name_that_is_a_number() -> None:
    send = example("send")
    assert await send.resolve("127.0.0.1", 9) == ("127.0.0.1", 9)


async def collect(sock: trio.socket.SocketType, wanted: int) -> list[bytes]:
    """The payloads of as many datagrams as wanted."""
    packets: list[bytes] = []
    with UdpBatchReceiver(sock) as receiver:
        while len(packets) < wanted:
            packets += [packet for packet, _ in await receiver.receive()]
    return packets


class EchoServer:
    """Answers each datagram, and fails as soon as it gets more than were sent to it."""

    def __init__(self, sock: trio.socket.SocketType, most: int) -> None:
        self.sock = sock
        self.most = most
        self.seen: list[bytes] = []
        self.peers: set[Address] = set()

    async def run(self) -> None:
        while True:
            packet, peer = await self.sock.recvfrom(65_536)
            self.seen.append(packet)
            self.peers.add(peer)
            assert len(self.seen) <= self.most, "a datagram was sent more than once"
            await self.sock.sendto(packet, peer)


async def ask(client: trio.socket.SocketType, packets: list[bytes], server: Address) -> list[bytes]:
    """Send the packets one after the other, and return as many answers; all from the server."""
    answers: list[bytes] = []
    for packet in packets:
        await client.sendto(packet, server)
    while len(answers) < len(packets):
        packet, source = await client.recvfrom(65_536)
        assert source == server
        answers.append(packet)
    return answers


async def test_join_example_passes_datagrams_both_ways(
    backend: str, nursery: trio.Nursery, stack: contextlib.ExitStack
) -> None:
    join = example("join")
    left, right, client, target = [stack.enter_context(await bound_socket()) for _ in range(4)]
    await left.connect(client.getsockname())
    await right.connect(target.getsockname())
    packets = [b"packet %d" % number for number in range(20)]
    echo = EchoServer(target, most=len(packets))
    nursery.start_soon(echo.run)
    nursery.start_soon(join.join, left, right)
    with trio.fail_after(HANG_GUARD):
        assert await ask(client, packets, left.getsockname()) == packets
    assert echo.seen == packets
    assert echo.peers == {right.getsockname()}
    nursery.cancel_scope.cancel()


async def test_testing_examples_pass(autojump_clock: trio.testing.MockClock) -> None:
    testing = example("test_app")
    testing.test_handler_alone()
    await testing.test_pump_without_a_socket()
    await testing.test_questions_on_a_bad_network(autojump_clock)
    await testing.test_one_peer_cannot_be_reached()


def test_testing_example_would_fail_for_another_handler(monkeypatch: pytest.MonkeyPatch) -> None:
    testing = example("test_app")
    quiet = PacketBatch([PacketTrain(b"one", 3, testing.PEER)])
    monkeypatch.setattr(testing, "shout", lambda batch: quiet)
    with pytest.raises(AssertionError):
        testing.test_handler_alone()
