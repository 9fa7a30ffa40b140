# Addresses that only compare equal to good ones: ("127.0.0.1", 80.0) is not ("127.0.0.1", 80).
#
# Encoded addresses are cached, and to a cache the two are the same key. What was refused when it
# came first must be refused just so when a good one came before it.

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import trio

from snaptun_trio import PacketBatch, PacketTrain, UdpBatchSender, open_batch_pump

if TYPE_CHECKING:
    from . import ends


def slips_of(host: str, port: int) -> list[Any]:
    """What a program may take for a port, or for the numbers of an IPv6 address."""
    return [(host, float(port)), (host, port, 0.0, 0), (host, port, 0, False)]


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_slip_is_refused_also_after_the_address_it_equals(
    backend: str, udp: ends.MakeSocket, host: str
) -> None:
    into = udp(host)
    port = into.getsockname()[1]
    sender = UdpBatchSender(udp(host))
    batch = PacketBatch([PacketTrain(b"x", 1, None)])
    sender.send_nowait(batch.to((host, port)))
    if host == "::1":
        sender.send_nowait(batch.to((host, port, 0, 0)))
    sent = sender.statistics().datagrams_sent
    for slip in slips_of(host, port):
        with pytest.raises(TypeError):
            sender.try_queue_packet(b"x", slip)
        with pytest.raises(TypeError):
            sender.send_nowait(batch.to(slip))
    assert sender.is_empty
    assert sender.statistics().datagrams_sent == sent


def test_a_pump_is_not_opened_at_a_slip() -> None:
    async def open_at(address: Any) -> None:  # noqa: ANN401
        async with open_batch_pump(address):
            await trio.lowlevel.checkpoint()

    trio.run(open_at, ("127.0.0.1", 0))
    for slip in slips_of("127.0.0.1", 0):
        with pytest.raises(TypeError):
            trio.run(open_at, slip)
