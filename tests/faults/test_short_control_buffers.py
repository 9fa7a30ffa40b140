# Control buffers that end before, in and after the segment size: F10 of the fault matrix.
#
# The receive buffer for control messages is made for everything that a socket can be asked to
# report. Here it is made too short on purpose, so that the kernel cuts off the one message that
# says where the datagrams of a train end. To guess it would make two datagrams into one.

from __future__ import annotations

import pytest

from snaptun_trio import PacketBatch, PacketTrain, UdpBatchReceiver, UdpBatchSender
from snaptun_trio._kernel import _abi

from .. import recorder, system_calls
from . import harness, laws, ledger, sockets

pytestmark = [pytest.mark.needs_gso, pytest.mark.needs_gro]

# A timestamp comes first and takes 32 bytes; the segment size follows and takes 20, padded to 24.
SHORT = [32, 40, 48, 51]


def offer_short_buffers(monkeypatch: pytest.MonkeyPatch, backend: str, control_size: int) -> None:
    """Let each receive call have so little room for control messages."""
    if backend == "portable":
        monkeypatch.setattr(_abi, "CONTROL_SIZE", control_size)
        return

    def receive(fd: int, address: int, count: int, flags: int, timeout: None) -> int:
        recorder.shorten_controls(address, count, control_size)
        return real(fd, address, count, flags, timeout)

    real, _ = system_calls.replace(monkeypatch, receive)


@pytest.mark.parametrize("control_size", SHORT)
async def test_f10_a_segment_size_that_was_cut_off_is_never_guessed(
    backend: str, control_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trains are left out and counted to the byte; nothing wrong is ever delivered."""
    offer_short_buffers(monkeypatch, backend, control_size)
    book = ledger.Ledger()
    with sockets.udp() as out, sockets.udp() as into:
        sender = UdpBatchSender(out)
        receiver = UdpBatchReceiver(into, timestamps=True)
        segments = (2, 10, 40)
        for count in segments:
            data = b"".join(book.write_many(count, size=100))
            await sender.send(PacketBatch([PacketTrain(data, 100, into.getsockname())]))

        def settled() -> bool:
            return receiver.statistics().trains_with_unknown_boundaries == len(segments)

        await harness.collect(receiver, book, settled)
        counters, account = receiver.statistics(), book.account()
        assert account.damaged == 0
        assert account.missing == account.written == sum(segments)
        assert counters.bytes_with_unknown_boundaries == 100 * sum(segments)
        laws.receiver_adds_up(counters, account.delivered)
