# What the README and the docs promise: their commands and examples are the real ones, and work.
#
# The examples are files in docs/examples; those that talk run here over real loopback sockets. This
# file must not know how the library does it.

from __future__ import annotations

import importlib.util
import re
import signal
import socket
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio

from snaptun_trio import PacketBatch, PacketTrain, UdpBatchReceiver

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

    from snaptun_trio import Address

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "docs" / "examples"
README = (ROOT / "README.md").read_text(encoding="utf-8")
HANG_GUARD = 60  # seconds; only a hang takes that long


def example(name: str) -> ModuleType:
    """One file of docs/examples, imported afresh."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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


def test_readme_shows_the_echo_example_as_it_stands() -> None:
    assert blocks("python") == [(EXAMPLES / "echo.py").read_text(encoding="utf-8")]


def test_ci_runs_exactly_the_readmes_test_command() -> None:
    demo, test = (block.strip() for block in blocks("sh"))
    assert "-m snaptun_trio demo" in demo
    assert "nox" in test
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert test in [line.strip() for line in script.splitlines()]


def test_every_example_is_shown_in_the_docs() -> None:
    pages = "".join(page.read_text(encoding="utf-8") for page in (ROOT / "docs").glob("*.rst"))
    shown = set(re.findall(r"literalinclude:: examples/(\w+)\.py", pages))
    assert shown == {path.stem for path in EXAMPLES.glob("*.py")}


@pytest.mark.core
def test_echo_example_echoes_as_a_program(stdlib_socket: socket.socket) -> None:
    command = [sys.executable, str(EXAMPLES / "echo.py")]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as program:
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
            _, stderr = program.communicate(timeout=HANG_GUARD)
    assert "KeyboardInterrupt" in stderr  # ended by us, not by an error of its own


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


async def collect(sock: trio.socket.SocketType, wanted: int) -> list[bytes]:
    """The payloads of as many datagrams as wanted."""
    packets: list[bytes] = []
    with UdpBatchReceiver(sock) as receiver:
        while len(packets) < wanted:
            packets += [packet for packet, _ in await receiver.receive()]
    return packets


@pytest.mark.parametrize("between_two_sockets", [False, True])
async def test_relay_examples_pass_datagrams_on(
    nursery: trio.Nursery, between_two_sockets: bool
) -> None:
    relay = example("relay")
    with (
        await bound_socket() as inside,
        await bound_socket() as outside,
        await bound_socket() as peer,
        await bound_socket() as target,
    ):
        if between_two_sockets:
            nursery.start_soon(relay.relay_between, inside, outside, target.getsockname())
        else:
            nursery.start_soon(relay.relay, inside, target.getsockname())
        packets = [b"packet %d" % number for number in range(20)]
        for packet in packets:
            await peer.sendto(packet, inside.getsockname())
        with trio.fail_after(HANG_GUARD):
            assert await collect(target, len(packets)) == packets
        nursery.cancel_scope.cancel()


async def test_shared_port_example_opens_one_port_twice() -> None:
    if not hasattr(socket, "SO_REUSEPORT"):
        pytest.skip("this system has no SO_REUSEPORT")
    shared_port = example("shared_port")
    with await shared_port.open_shared_socket(("127.0.0.1", 0)) as first:
        with await shared_port.open_shared_socket(first.getsockname()) as second:
            assert second.getsockname() == first.getsockname()


async def test_testing_examples_pass() -> None:
    testing = example("testing_an_app")
    testing.test_handler_alone()
    with trio.fail_after(HANG_GUARD):
        await testing.test_pump_without_a_socket()


def test_testing_example_would_fail_for_another_handler(monkeypatch: pytest.MonkeyPatch) -> None:
    testing = example("testing_an_app")
    quiet = PacketBatch([PacketTrain(b"one", 3, testing.PEER)])
    monkeypatch.setattr(testing, "shout", lambda batch: quiet)
    with pytest.raises(AssertionError):
        testing.test_handler_alone()
