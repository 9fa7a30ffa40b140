# The documentation's QUIC server and those who do not mean well: garbage, forgeries, floods, and
# peers that have others keep things for them.

from __future__ import annotations

import os
from typing import Any

import pytest
import trio
from aioquic.quic.packet import QuicProtocolVersion

from . import ends
from .benchmarks.quic._certificate import write_certificate
from .quic_ends import HOST, QUIC, SERVER, Files, hash_of, moved, port_of, serving, until

IDS = 9  # of a connection: eight, and the one that its client began with


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Files(*write_certificate(tmp_path_factory.mktemp("quic")))


def initial(destination: bytes, *, version: int = QuicProtocolVersion.VERSION_1) -> bytes:
    """The first datagram of a handshake, as somebody makes it up who knows only the header."""
    head = b"\xc3" + version.to_bytes(4, "big") + bytes([len(destination)]) + destination
    head += b"\x08" + os.urandom(8) + b"\x00"  # the source's id, no token
    rest = 1200 - len(head) - 2
    return head + (0x4000 | rest).to_bytes(2, "big") + os.urandom(rest)


async def test_garbage_and_forgeries_neither_end_nor_grow_it(
    files: Files, udp: ends.MakeSocket, caplog: pytest.LogCaptureFixture
) -> None:
    stranger = udp()
    async with serving(files, max_connections=6) as server:
        async with QUIC.connect(HOST, port_of(server), files.client()) as connection:
            (behind,) = server.connections
            ids = [number for number, other in server.routes.items() if other is behind]
            forged = [b"\x40" + number + os.urandom(40) for number in ids]
            forged += [b"", b"\x00", b"\xc3", b"\xff" * 1200, initial(b"short"), *forged]
            forged += [initial(number) for number in ids]
            forged += [os.urandom(size) for size in range(1, 1400, 7)]
            forged += [initial(os.urandom(8))[:size] for size in (7, 20, 1199)]
            forged += [initial(os.urandom(8), version=0)]  # negotiates, which is an answer
            for packet in forged:
                stranger.sendto(packet, (HOST, port_of(server)))
            for _ in range(50):
                stranger.sendto(initial(os.urandom(8)), (HOST, port_of(server)))
                assert len(server.connections) <= 3  # from half of them on, only with Retry
                assert await moved(connection, "get", 100) == hash_of(100)
            assert behind in server.connections
            assert len(server.routes) <= 3 * IDS
            # Who receives at its address comes in all the same, by the Retry's token.
            async with QUIC.connect(HOST, port_of(server), files.client()) as other:
                assert await moved(other, "put", 1000) == hash_of(1000)
                assert other.quic._retry_count == 1
    assert not caplog.records


async def test_a_full_server_takes_nobody_and_then_somebody(files: Files) -> None:
    async with serving(files, max_connections=1) as server:
        async with QUIC.connect(HOST, port_of(server), files.client()) as first:
            async with trio.open_nursery() as nursery:
                served = trio.Event()

                async def second() -> None:
                    async with QUIC.connect(HOST, port_of(server), files.client()) as other:
                        assert await moved(other, "get", 100) == hash_of(100)
                        served.set()

                nursery.start_soon(second)
                received = server.receiver.statistics().datagrams_received
                await until(lambda: server.receiver.statistics().datagrams_received > received)
                assert await moved(first, "get", 100) == hash_of(100)
                assert not served.is_set()
                first.close()
                await served.wait()


async def test_an_unknown_version_is_told_which_there_are(
    linux_backend: None, files: Files, udp: ends.MakeSocket
) -> None:
    asking = udp()
    async with serving(files, host="0.0.0.0") as server:
        asking.connect(("127.0.0.2", port_of(server)))  # so only that address may answer
        packet = initial(b"12345678", version=0x1A2A3A4A)
        asking.send(packet[:1100])  # is not answered
        asking.send(packet)
        await trio.lowlevel.wait_readable(asking)
        (answer,) = ends.read_plainly(asking, 1)
        assert answer[1:5] == bytes(4)
        assert answer[5:14] == packet[14:23]  # to the one who asked
        versions = {int.from_bytes(answer[at : at + 4], "big") for at in range(23, len(answer), 4)}
        assert versions == {QuicProtocolVersion.VERSION_1, QuicProtocolVersion.VERSION_2}
        assert not server.connections


async def sleep(connection: Any) -> None:  # noqa: ANN401
    await trio.sleep_forever()


async def test_a_stream_that_is_not_read_ends_its_connection(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SERVER.Connection.run.__globals__, "MAX_UNREAD", 200_000)
    async with serving(files, sleep) as server:
        async with QUIC.connect(HOST, port_of(server), files.client()) as connection:
            async with connection.open_stream() as stream:
                with pytest.raises(trio.BrokenResourceError):
                    while True:
                        await stream.send_all(bytes(100_000))
            assert connection.outcome.reason_phrase == "a stream is not read"
        await until(lambda: not server.connections)


async def test_streams_that_nobody_takes_end_their_connection(files: Files) -> None:
    async with serving(files, sleep) as server:
        async with QUIC.connect(HOST, port_of(server), files.client()) as connection:
            # Of one way: such a stream is finished when it has come, and makes room for another.
            for _ in range(400):
                number = connection.quic.get_next_available_stream_id(is_unidirectional=True)
                connection.quic.send_stream_data(number, b"one more", end_stream=True)
            connection.wake()
            await until(lambda: connection.outcome is not None)
            assert connection.outcome.reason_phrase == "nobody takes the streams"
        await until(lambda: not server.connections)
