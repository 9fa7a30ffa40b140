# What a refusal costs the datagrams beside it: none is taken for another one, none is given up
# without a try that speaks for it, and what was believed of a peer is not believed for ever.

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from snaptun_trio import Address, PacketBatch, PacketTrain, SendBatchError, UdpBatchSender

from .test_sender import check_law

if TYPE_CHECKING:
    from snaptun_trio._kernel._pieces import OutgoingMessage

    from . import ends, scripted

A: Address = ("127.0.0.1", 9)


def failed(sender: UdpBatchSender, batch: PacketBatch) -> list[list[bytes]]:
    """The datagrams of each failure that sending a batch reports."""
    with pytest.raises(SendBatchError) as report:
        sender.send_nowait(batch)
    check_law(sender)
    return [list(failure.train) for failure in report.value.failures]


def test_what_goes_between_two_refused_datagrams_of_a_train_is_not_reported(
    kernel: scripted.ScriptedKernel, udp: ends.MakeSocket
) -> None:
    def refuse(first: OutgoingMessage) -> int:
        return -errno.EACCES if first.payload in (b"aa", b"cc") else 1

    kernel.sends += [refuse] * 9
    sender = UdpBatchSender(udp(), gso=False)
    batch = PacketBatch([PacketTrain(b"aabbccdd", 2, A)])
    assert failed(sender, batch) == [[b"aa"], [b"cc"]]
    assert kernel.payloads == [b"bb", b"dd"]


def test_a_part_of_a_train_that_is_too_long_says_nothing_of_a_short_end_behind_it(
    kernel: scripted.ScriptedKernel, udp: ends.MakeSocket
) -> None:
    """The train is longer than one message: its end was in none that was refused."""

    def too_long(first: OutgoingMessage) -> int:
        return -errno.EMSGSIZE if first.datagrams > 1 or first.nbytes > 1 else 1

    kernel.sends += [too_long] * 200
    sender = UdpBatchSender(udp())
    sender._io.gso = True
    batch = PacketBatch([PacketTrain(b"ab" * 70 + b"c", 2, A)])
    assert failed(sender, batch) == [[b"ab"] * 70]
    assert kernel.payloads == [b"c"]


def test_a_peer_that_was_dead_and_lives_is_believed_to_live(
    kernel: scripted.ScriptedKernel, udp: ends.MakeSocket
) -> None:
    """Whatever went through after an error shows that the error was about something else."""
    sender = UdpBatchSender(udp())
    one = PacketBatch([PacketTrain(b"x", 1, A)])
    kernel.sends += [-errno.ECONNREFUSED] * 64
    assert failed(sender, one) == [[b"x"]]
    kernel.sends += [-errno.ECONNREFUSED] * 2
    assert failed(sender, one) == [[b"x"]], "it is known by now"
    kernel.sends += [-errno.ECONNREFUSED, 1]
    sender.send_nowait(one)
    kernel.sends += [-errno.ECONNREFUSED] * 10
    sender.send_nowait(one)
    assert len(kernel.sent) == 2
    check_law(sender)


def test_what_was_refused_long_ago_does_not_shorten_a_call_of_today(
    kernel: scripted.ScriptedKernel, udp: ends.MakeSocket
) -> None:
    """What may be refused in one go is bounded; what is sent at once is the caller's choice."""
    sender = UdpBatchSender(udp())
    for _ in range(150):
        kernel.sends += [-errno.EACCES] * 2
        failed(sender, PacketBatch([PacketTrain(b"x", 1, A)]))
    many = PacketBatch([PacketTrain(bytes(n % 1000 + 1), 1000, A) for n in range(3000, 0, -1)])
    sender.send_nowait(many)
    assert sender.is_empty
    assert len(kernel.sent) == 3000


async def test_a_socket_that_is_full_again_and_again_causes_no_pauses(
    kernel: scripted.ScriptedKernel,
    udp: ends.MakeSocket,
    autojump_clock: trio.testing.MockClock,
) -> None:
    """It is called ready each time, and each time it takes something."""
    kernel.ready = kernel.waits.always_writable = True
    sender = UdpBatchSender(udp())
    kernel.sends += [1, -errno.EAGAIN] * 60
    now = trio.current_time()
    await sender.send(PacketBatch([PacketTrain(bytes(n + 1), n + 1, A) for n in range(60)]))
    assert trio.current_time() == now
    assert len(kernel.sent) == 60
