# The programs that the tutorial builds: an echo server, a client, a DNS server, and its tests.
#
# They run as programs, over loopback, and talk to each other.

from __future__ import annotations

import contextlib
import inspect
import logging
import signal
import socket
import sys
from functools import partial
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from snaptun_trio import open_udp_channel, serve_udp

from . import ends
from .examples import example, first_line, program, program_on

if TYPE_CHECKING:
    from snaptun_trio import UdpServer


@pytest.mark.core
def test_echo_server_and_client_talk_to_each_other() -> None:
    with program("echo_server", "0") as server:
        port = first_line(server, r"echoing on port (\d+)\n")[1]
        with program("client", "127.0.0.1", port, "hello") as client:
            assert client.communicate(timeout=ends.PATIENCE) == ("hello\n", "")
        with program("hello", port) as client:
            assert client.communicate(timeout=ends.PATIENCE) == ("b'hello'\n", "")
        server.send_signal(signal.SIGINT)
        _, errors = server.communicate(timeout=ends.PATIENCE)
    assert "KeyboardInterrupt" in errors  # ended by us, not by an error of its own


def test_hello_says_that_there_is_no_answer() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        with program("hello", str(silent.getsockname()[1])) as client:
            assert client.communicate(timeout=ends.PATIENCE) == ("no answer\n", "")
        silent.setblocking(False)
        assert [silent.recv(100) for _ in range(3)] == [b"hello"] * 3


@pytest.mark.skipif(
    sys.platform != "linux", reason="what the path says of closed ports is the system's"
)
def test_client_says_that_nobody_listens() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as keeper:
        keeper.bind(("127.0.0.1", 0))
        keeper.connect(("127.0.0.1", 9))  # to anybody else the port is closed, and nobody has it
        port = str(keeper.getsockname()[1])
        with program("client", "127.0.0.1", port, "hello") as client:
            _, errors = client.communicate(timeout=ends.PATIENCE)
    assert (client.returncode, errors) == (1, f"nobody listens on 127.0.0.1 port {port}\n")


@pytest.mark.core
@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT])
async def test_dns_server_answers_and_stops_in_order(backend: str, end: signal.Signals) -> None:
    ask, message = example("client").ask, example("dns_message")
    with program("dns_server", "127.0.0.1", "0") as server:
        found = first_line(server, r"answering on (\S+) port (\d+)\n")
        async with await open_udp_channel(found[1], int(found[2])) as channel:
            for name, host in message.HOSTS.items():
                question = message.question(7, name)
                answer = await ask(channel, question)
                assert answer == message.answer_to(question)
                assert answer.endswith(socket.inet_aton(host))
            await channel.send_packet(b"no message")  # is not answered, and ends nothing
            unknown = message.question(8, b"no.such.name")
            answer = await ask(channel, unknown)
            assert answer[3] & 15 == message.NAME_ERROR
            server.send_signal(end)
            out, errors = server.communicate(timeout=ends.PATIENCE)
    assert (server.returncode, errors) == (0, "")
    asked = len(message.HOSTS) + 2
    assert out == f"{asked} received, {asked - 1} sent\n"


async def test_dns_server_goes_on_when_one_peer_is_trouble(
    backend: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ask, message, dns = example("client").ask, example("dns_message"), example("dns_server")
    question = message.question(7, b"www.example.org")

    def answer_to(packet: bytes) -> bytes | None:
        if packet == b"trouble":
            raise OSError("for a test")
        answer: bytes | None = message.answer_to(packet)
        return answer

    monkeypatch.setattr(dns, "answer_to", answer_to)
    async with trio.open_nursery() as nursery:
        serve = partial(serve_udp, dns.answer, 0, host="127.0.0.1", on_error=dns.note)
        server: UdpServer = await nursery.start(serve)
        host, port = server.local_address[:2]
        async with await open_udp_channel(host, port) as bad:
            await bad.send_packet(b"trouble")
            async with await open_udp_channel(host, port) as good:
                assert await ask(good, question) == message.answer_to(question)
            while not caplog.records:
                await trio.lowlevel.checkpoint()
            (record,) = caplog.records
            assert record.levelno == logging.WARNING
            assert record.getMessage() == f"{bad.local_address}: OSError('for a test')"
        nursery.cancel_scope.cancel()


@pytest.mark.core
@pytest.mark.skipif(sys.platform == "win32", reason="descriptors are handed down otherwise there")
async def test_service_answers_on_a_socket_that_it_inherited(backend: str) -> None:
    """As systemd does it: bound by somebody else, number 3, LISTEN_FDS and LISTEN_PID."""
    ask, message = example("client").ask, example("dns_message")
    question = message.question(7, b"www.example.org")
    with ends.bound_socket() as sock:
        host, port = sock.getsockname()
        async with await open_udp_channel(host, port) as channel:
            await channel.send_packet(question)  # before it runs
            with program_on(sock, "service", "1") as service:
                first_line(service, f"answering on port {port}\n")
                assert await channel.receive_packet() == message.answer_to(question)
                assert await ask(channel, question) == message.answer_to(question)
                service.send_signal(signal.SIGTERM)
                _, errors = service.communicate(timeout=ends.PATIENCE)
    assert (service.returncode, errors) == (0, "")


@pytest.mark.skipif(sys.platform != "linux", reason="how peers are spread is Linux's")
async def test_a_worker_that_goes_leaves_its_peers_to_the_other(backend: str) -> None:
    ask, message = example("client").ask, example("dns_message")
    question = message.question(7, b"www.example.org")
    with program("service", "0") as one:
        port = first_line(one, r"answering on port (\d+)\n")[1]
        with program("service", port) as other, contextlib.ExitStack() as stack:
            first_line(other, f"answering on port {port}\n")
            channels = [
                stack.enter_context(await open_udp_channel("127.0.0.1", int(port)))
                for _ in range(32)
            ]
            for channel in channels:
                assert await ask(channel, question) == message.answer_to(question)
            one.send_signal(signal.SIGTERM)
            _, errors = one.communicate(timeout=ends.PATIENCE)
            assert (one.returncode, errors) == (0, "")
            for channel in channels:
                assert await ask(channel, question) == message.answer_to(question)


TESTS = [name for name in vars(example("test_server")) if name.startswith("test_")]


@pytest.mark.parametrize("name", TESTS)
async def test_the_tests_of_the_tutorial_pass(
    name: str, autojump_clock: trio.testing.MockClock
) -> None:
    test = getattr(example("test_server"), name)
    if not inspect.iscoroutinefunction(test):
        test()
    elif inspect.signature(test).parameters:
        await test(autojump_clock)
    else:
        await test()


async def test_the_tests_of_the_tutorial_would_fail_for_a_server_that_does_not_answer(
    autojump_clock: trio.testing.MockClock,
) -> None:
    testing = example("test_server")
    testing.dns_server.answer_to = lambda message: None
    with pytest.RaisesGroup(trio.TooSlowError):
        await testing.test_questions_are_answered_on_a_bad_network(autojump_clock)
