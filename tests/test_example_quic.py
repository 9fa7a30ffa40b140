# The documentation's QUIC programs: bytes both ways, many at once, bad networks, other ports, and
# the end. aioquic's own server and client on asyncio stand on the other side.

from __future__ import annotations

import json
import signal
import socket
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing
from aioquic.quic.packet import QuicErrorCode

from snaptun_trio import open_udp_channel
from snaptun_trio.testing import impair, memory_channel_pair

from . import ends, quic_ends
from .benchmarks.quic import __main__ as benchmark
from .benchmarks.quic._certificate import write_certificate
from .benchmarks.quic._running import Row, serving as program_serving, sit
from .examples import program
from .quic_ends import (
    HOST,
    MOVES,
    QUIC,
    Files,
    hash_of,
    in_memory,
    moved,
    port_of,
    serving,
    until,
)

if TYPE_CHECKING:
    from typing import Any

MEGABYTE = 1_000_000


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Files(*write_certificate(tmp_path_factory.mktemp("quic")))


@pytest.mark.parametrize("verb", ["get", "put"])
@pytest.mark.parametrize("size", [0, 1, MEGABYTE])
async def test_bytes_arrive_as_they_were_sent(
    backend: str, files: Files, verb: str, size: int
) -> None:
    async with serving(files) as server:
        async with QUIC.connect(HOST, port_of(server), files.client()) as connection:
            assert await moved(connection, verb, size) == hash_of(size)
        await until(lambda: not server.connections)


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["get", "put"])
def test_fifty_megabytes_arrive(backend: str, files: Files, verb: str) -> None:
    with program_serving("snaptun_trio", files.certificate, files.key) as served:
        row = Row(verb, 1, 50 * MEGABYTE)
        assert sit("snaptun_trio", served, row, files.certificate).seconds > 0  # it checks hashes


async def test_packets_of_one_turn_leave_together(linux_backend: None, files: Files) -> None:
    async with serving(files) as server:
        async with QUIC.connect(HOST, port_of(server), files.client()) as connection:
            await moved(connection, "get", MEGABYTE)
        sent = server.sender.statistics()
        assert sent.datagrams_sent > 800
        assert sent.send_calls < sent.datagrams_sent / 3
        if sent.gso:
            assert sent.trains_sent < sent.datagrams_sent / 3


async def test_streams_of_a_connection_go_both_ways_at_once(files: Files) -> None:
    async with serving(files) as server:
        async with QUIC.connect(HOST, port_of(server), files.client()) as connection:

            async def move(verb: str) -> None:
                assert await moved(connection, verb, 100_000) == hash_of(100_000)

            async with trio.open_nursery() as nursery:
                for number in range(40):
                    nursery.start_soon(move, "get" if number % 2 else "put")


async def test_a_hundred_connections_at_once(backend: str, files: Files) -> None:
    async with serving(files) as server:

        async def move(verb: str) -> None:
            async with QUIC.connect(HOST, port_of(server), files.client()) as connection:
                assert await moved(connection, verb, 20_000) == hash_of(20_000)

        async with trio.open_nursery() as nursery:
            for number in range(100):
                nursery.start_soon(move, "get" if number % 2 else "put")
        await until(lambda: not server.connections)


@pytest.mark.parametrize("verb", ["get", "put"])
async def test_a_bad_network_costs_time_and_no_bytes(
    files: Files, verb: str, autojump_clock: trio.testing.MockClock
) -> None:
    near, far = memory_channel_pair()
    how = {"loss": 0.05, "duplicate": 0.05, "reorder": 0.1, "corrupt": 0.02, "delay": 0.02}
    there, back = impair(near, **how, seed=1), impair(far, **how, seed=2)
    async with in_memory(files, near, far, there.send, back.send) as (client, _):
        assert await moved(client, verb, 300_000) == hash_of(300_000)
    log = [*there.log, *back.log]
    assert any(one.copies == 0 for one in log)
    assert any(one.copies == 2 for one in log)


async def test_a_connection_that_nobody_uses_ends(
    files: Files, autojump_clock: trio.testing.MockClock
) -> None:
    near, far = memory_channel_pair()
    began = trio.current_time()
    async with in_memory(files, near, far, near.send, far.send, idle_timeout=20.0) as ends_of:
        client, server = ends_of
        stream = client.open_stream()
        with pytest.raises(trio.BrokenResourceError):
            await stream.receive_some()
        await until(lambda: server.outcome is not None)
        assert client.outcome.reason_phrase == server.outcome.reason_phrase == "Idle timeout"
        assert 20.0 <= trio.current_time() - began < 30.0
        with pytest.raises(trio.BrokenResourceError):
            await stream.send_all(b"too late")


async def test_a_server_that_is_not_there_is_given_up(
    files: Files, autojump_clock: trio.testing.MockClock
) -> None:
    near, far = memory_channel_pair()
    lossy = impair(near, loss=1)
    with pytest.RaisesGroup(ConnectionError):
        async with in_memory(files, near, far, lossy.send, far.send):
            pytest.fail("it is not there")
    assert trio.current_time() >= 60.0


async def test_a_closed_port_is_told_at_once(files: Files, udp: ends.MakeSocket) -> None:
    keeper = udp()
    ends.deafen(keeper)
    with pytest.RaisesGroup(ConnectionRefusedError):
        async with QUIC.connect(HOST, ends.address_of(keeper)[1], files.client()):
            pytest.fail("nobody listens")


async def test_a_client_that_does_not_know_the_authority_goes(
    files: Files, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = Files(*write_certificate(tmp_path_factory.mktemp("other")))
    async with serving(files) as server:
        with pytest.RaisesGroup(ConnectionError):
            async with QUIC.connect(HOST, port_of(server), other.client()):
                pytest.fail("anybody could be the server")
        await until(lambda: not server.connections)


@pytest.mark.parametrize("verb", ["get", "put"])
async def test_a_client_whose_nat_takes_another_port_goes_on(files: Files, verb: str) -> None:
    async with trio.open_nursery() as nursery, serving(files) as server:
        way = quic_ends.Rebinding(port_of(server))
        port = await nursery.start(way.run)
        async with QUIC.connect(HOST, port, files.client()) as connection:
            (behind,) = server.connections
            before = behind.quic.get_peer_address()

            async def rebind() -> None:
                await until(lambda: way.passed > 200)
                await way.rebind()

            nursery.start_soon(rebind)
            assert await moved(connection, verb, MEGABYTE) == hash_of(MEGABYTE)
            assert {behind} == server.connections
            after = behind.quic.get_peer_address()
            assert (before[0][0], before[0][1] != after[0][1]) == (after[0][0], True)
        nursery.cancel_scope.cancel()


async def test_a_client_that_moves_to_another_port_takes_another_id(files: Files) -> None:
    async with trio.open_nursery() as nursery, serving(files) as server:
        async with QUIC.connect(HOST, port_of(server), files.client()) as connection:
            assert await moved(connection, "put", 1000) == hash_of(1000)
            (behind,) = server.connections
            async with await open_udp_channel(HOST, port_of(server)) as channel:
                nursery.start_soon(QUIC._receive, channel, connection)
                old = behind.quic.host_cid
                connection.quic.change_connection_id()
                connection.send = channel.send
                assert await moved(connection, "get", MEGABYTE) == hash_of(MEGABYTE)
                assert behind.quic.get_peer_address()[0] == channel.local_address
                assert behind.quic.host_cid != old
                assert old not in server.routes
                nursery.cancel_scope.cancel()


async def test_on_a_wildcard_address_the_asked_one_answers(
    linux_backend: None, files: Files
) -> None:
    async with serving(files, host="0.0.0.0") as server:
        async with QUIC.connect("127.0.0.2", port_of(server), files.client()) as connection:
            assert await moved(connection, "get", 10_000) == hash_of(10_000)


async def test_a_request_that_is_none_resets_its_stream_and_no_more(files: Files) -> None:
    async with serving(files) as server:
        async with QUIC.connect(HOST, port_of(server), files.client()) as connection:
            for request in (b"FETCH 1\n", b"GET\n", b"GET -1\n", b"PUT 5\nfour", b"x" * 1000):
                async with connection.open_stream() as stream:
                    await stream.send_all(request)
                    await stream.send_eof()
                    with pytest.raises(trio.BrokenResourceError):
                        await stream.receive_some()
            assert await moved(connection, "get", 100) == hash_of(100)


async def test_what_a_handler_raises_ends_one_connection(
    files: Files, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(connection: Any) -> None:  # noqa: ANN401
        stream = await connection.streams.receive()
        if await stream.receive_some() == b"fail":
            raise ValueError("for a test")
        await stream.send_all(b"fine")
        await stream.receive_some()

    async with serving(files, fail) as server:
        async with QUIC.connect(HOST, port_of(server), files.client()) as good:
            stream = good.open_stream()
            async with QUIC.connect(HOST, port_of(server), files.client()) as bad:
                await bad.open_stream().send_all(b"fail")
                await until(lambda: bad.outcome is not None)
                assert bad.outcome.error_code == QuicErrorCode.NO_ERROR
            await stream.send_all(b"hello")
            assert await stream.receive_some() == b"fine"
    assert ["for a test" in (record.exc_text or "") for record in caplog.records] == [True]


async def test_cancelled_in_the_middle_both_sides_say_so(files: Files) -> None:
    async with serving(files) as server:
        async with QUIC.connect(HOST, port_of(server), files.client()) as connection:
            stream = connection.open_stream()
            await stream.send_all(b"GET %d\n" % (100 * MEGABYTE))
            assert await stream.receive_some()
            (behind,) = server.connections
            assert len(behind.quic._streams[0].sender._buffer) < 10 * MEGABYTE  # and not all of it
        await until(lambda: not server.connections)
        assert behind.outcome.error_code == QuicErrorCode.NO_ERROR
        async with QUIC.connect(HOST, port_of(server), files.client()) as connection:
            stream = connection.open_stream()
            await stream.send_all(b"GET %d\n" % (100 * MEGABYTE))
            assert await stream.receive_some()
            (behind,) = server.connections
            behind.close(QuicErrorCode.APPLICATION_ERROR, "enough")
            with pytest.raises(trio.BrokenResourceError):
                while await stream.receive_some():
                    pass
            assert connection.outcome.reason_phrase == "enough"


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT])
async def test_at_the_end_the_program_closes_its_connections(
    files: Files, end: signal.Signals
) -> None:
    with program("quic_server", HOST, "0", files.certificate, files.key) as server:
        assert server.stdout is not None
        port = int(server.stdout.readline().removeprefix("serving on port "))
        async with QUIC.connect(HOST, port, files.client()) as connection:
            assert await moved(connection, "put", 1000) == hash_of(1000)
            stream = connection.open_stream()
            await stream.send_all(b"PUT 1000\n")
            server.send_signal(end)
            with pytest.raises(trio.BrokenResourceError):
                await stream.receive_some()
            assert connection.outcome.error_code == QuicErrorCode.NO_ERROR
        out, errors = server.communicate(timeout=ends.PATIENCE)
    assert (server.returncode, errors) == (0, "")
    assert out.endswith(" datagrams sent\n")


def test_the_programs_move_bytes_and_say_why_they_cannot(files: Files) -> None:
    with program("quic_server", HOST, "0", files.certificate, files.key) as server:
        assert server.stdout is not None
        port = server.stdout.readline().removeprefix("serving on port ").strip()
        for verb in MOVES:
            with program("quic_client", HOST, port, files.certificate, verb, "1000") as client:
                assert client.communicate(timeout=ends.PATIENCE) == (hash_of(1000) + "\n", "")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as keeper:
        keeper.bind((HOST, 0))
        closed = str(ends.deafen(keeper)[1])
        with program("quic_client", HOST, closed, files.certificate, "get", "1") as client:
            _, errors = client.communicate(timeout=ends.PATIENCE)
    assert client.returncode == 1
    assert f"{HOST} port {closed}: " in errors


@pytest.mark.parametrize("verb", ["get", "put"])
async def test_aioquics_own_server_serves_it(files: Files, verb: str) -> None:
    with program_serving("asyncio", files.certificate, files.key) as (_, port):
        async with QUIC.connect(HOST, port, files.client()) as connection:
            assert await moved(connection, verb, MEGABYTE) == hash_of(MEGABYTE)


@pytest.mark.parametrize("verb", ["get", "put"])
def test_aioquics_own_client_is_served(files: Files, verb: str) -> None:
    with program_serving("snaptun_trio", files.certificate, files.key) as served:
        row = Row(verb, 3, MEGABYTE)
        assert sit("asyncio", served, row, files.certificate).client_ns > 0  # it checks hashes


@pytest.mark.slow
def test_the_benchmark_measures(
    tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    there = tmp_path_factory.mktemp("figures")
    options = ["--rounds", "1", "--megabytes", "1", "--connections", "3"]
    options += ["--json", str(there / "f.json"), "--rst", str(there / "t.inc")]
    assert benchmark.main(options) == 0
    rows = json.loads((there / "f.json").read_text(encoding="utf-8"))["rows"]
    assert [row["connections"] for row in rows] == [1, 1, 3, 3]
    for row in rows:
        assert all(sitting["server_ns"] > 0 for (sitting,) in row["sittings"].values())
    assert (there / "t.inc").read_text(encoding="utf-8").count('"server"') == 4
    assert "CPU seconds for 1 MB" in capsys.readouterr().out
