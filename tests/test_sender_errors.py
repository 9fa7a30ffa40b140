# What each refusal of the kernel means to a sender: about the socket, about GSO, about an earlier
# datagram, or about this one. Each datagram is accounted for once, whatever happens.

from __future__ import annotations

import errno
import sys
from typing import TYPE_CHECKING

import pytest
import trio

from snaptun_trio import (
    Address,
    PacketBatch,
    PacketTrain,
    SendBatchError,
    SendFailure,
    UdpBatchReceiver,
    UdpBatchSender,
)

from . import ends, scripted
from .test_sender import check_law

if TYPE_CHECKING:
    from snaptun_trio._kernel._pieces import OutgoingMessage

A: Address = ("127.0.0.1", 9)
B: Address = ("127.0.0.2", 9)
C: Address = ("127.0.0.3", 9)


@pytest.fixture
def sender(kernel: scripted.ScriptedKernel, udp: ends.MakeSocket) -> UdpBatchSender:
    made = UdpBatchSender(udp())
    if not made.gso:
        pytest.skip("this system does not segment, so nothing can go wrong with it")
    return made


def three(middle: PacketTrain) -> PacketBatch:
    """A batch with a good datagram before and after."""
    return PacketBatch([PacketTrain(b"before", 6, A), middle, PacketTrain(b"after", 5, C)])


class Refuse:
    """Refuses every message to one address, for ever."""

    def __init__(self, address: Address, number: int, *, only_segmented: bool = False) -> None:
        self.address = address
        self.number = number
        self.only_segmented = only_segmented

    def __call__(self, first: OutgoingMessage) -> int:
        if first.address == self.address and not (self.only_segmented and first.datagrams == 1):
            return -self.number
        return 1


# -- refusals of one datagram


@pytest.mark.parametrize(
    "number",
    [errno.EINVAL, errno.EMSGSIZE, errno.ENETUNREACH, errno.EACCES, errno.EPERM, errno.ENOBUFS],
)
def test_a_refused_datagram_does_not_hold_up_the_others(
    sender: UdpBatchSender, kernel: scripted.ScriptedKernel, number: int
) -> None:
    kernel.sends += [Refuse(B, number)] * 20
    refused = PacketTrain(b"aabb", 2, B)
    with pytest.raises(SendBatchError) as report:
        sender.send_nowait(three(refused))
    assert kernel.payloads == [b"before", b"after"]
    (failure,) = report.value.failures
    assert failure.error.errno == number
    assert failure.train == refused
    assert str(report.value).startswith("2 datagrams to 127.0.0.2 port 9 could not be sent: ")
    assert sender.statistics().failures == {number: 2}
    assert sender.gso
    check_law(sender)


def test_a_refusal_lays_nothing_out_again(
    sender: UdpBatchSender, kernel: scripted.ScriptedKernel
) -> None:
    """Laying out costs more than sending, and a stranger may choose what is refused."""
    kernel.sends += [Refuse(B, errno.EACCES)] * 1000
    trains = [PacketTrain(bytes(n), n, (A, B)[n % 2]) for n in range(1, 101)]
    with pytest.raises(SendBatchError) as report:
        sender.send_nowait(PacketBatch(trains))
    assert [failure.train for failure in report.value.failures] == trains[::2]
    assert kernel.laid_out == 1
    check_law(sender)


def test_failures_are_reported_once(
    sender: UdpBatchSender, kernel: scripted.ScriptedKernel
) -> None:
    kernel.sends += [Refuse(B, errno.EACCES)] * 9
    with pytest.raises(SendBatchError):
        sender.send_nowait(three(PacketTrain(b"x", 1, B)))
    sender.try_flush_best_effort()
    sender.send_nowait(PacketBatch([PacketTrain(b"y", 1, A)]))
    assert kernel.payloads == [b"before", b"after", b"y"]


def test_failures_of_a_cancelled_flush_are_reported_by_the_next(
    udp: ends.MakeSocket, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = scripted.install(monkeypatch)
    sender = UdpBatchSender(udp())
    sender.try_queue_packet(b"bad", B)
    sender.try_queue_packet(b"good", A)
    kernel.sends += [-errno.EACCES, -errno.EACCES, -errno.EAGAIN]

    async def main() -> None:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(sender.flush)
                await trio.testing.wait_all_tasks_blocked()
                assert kernel.waits.waiting == 1
                scope.cancel()
        assert sender.statistics().datagrams_queued == 1
        with pytest.raises(SendBatchError) as report:
            await sender.flush()
        assert [failure.train.address for failure in report.value.failures] == [B]
        await sender.flush()

    trio.run(main)
    assert kernel.payloads == [b"good"]
    check_law(sender)


def test_the_report_of_a_batch_for_another_peer_names_that_peer(
    sender: UdpBatchSender, kernel: scripted.ScriptedKernel
) -> None:
    kernel.sends += [Refuse(B, errno.EACCES)] * 9
    with pytest.raises(SendBatchError) as report:
        sender.send_nowait(PacketBatch([PacketTrain(b"x", 1, A, ecn=1)]).to(B))
    assert report.value.failures[0].train.address == B


def test_a_part_of_a_long_train_can_be_refused(
    sender: UdpBatchSender, kernel: scripted.ScriptedKernel
) -> None:
    """64 datagrams go in one message; the second message is refused, the third goes."""
    train = PacketTrain(bytes(range(150)), 1, A)
    kernel.sends += [1, -errno.EPERM, -errno.EPERM]
    with pytest.raises(SendBatchError) as report:
        sender.send_nowait(PacketBatch([train]))
    packets = list(train)
    assert kernel.payloads == packets[:64] + packets[128:]
    assert [packet for failure in report.value.failures for packet in failure.train] == (
        packets[64:128]
    )
    check_law(sender)


def test_reasons_are_counted_by_datagrams() -> None:
    error = OSError(errno.EACCES, "Permission denied")
    report = SendBatchError(
        [
            SendFailure(PacketTrain(b"aabb", 2, A), error),
            SendFailure(PacketTrain(b"c", 2, A), error),
            SendFailure(PacketTrain(b"d", 2, A), OSError("odd")),
        ]
    )
    assert str(report) == (
        "4 datagrams to 127.0.0.1 port 9 could not be sent: Permission denied (3), odd (1)"
    )


# -- errors about an earlier datagram


@pytest.mark.parametrize("number", [errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.EPERM])
def test_an_error_that_the_second_try_does_not_meet_was_about_an_earlier_datagram(
    sender: UdpBatchSender, kernel: scripted.ScriptedKernel, number: int
) -> None:
    kernel.sends += [1, -number]
    sender.send_nowait(three(PacketTrain(b"x", 1, B)))
    assert kernel.payloads == [b"before", b"x", b"after"]
    assert sender.statistics().asynchronous_errors == {number: 1}
    assert sender.statistics().datagrams_failed == 0
    check_law(sender)


def test_a_storm_of_refusals_of_earlier_datagrams_costs_no_later_one(
    sender: UdpBatchSender, kernel: scripted.ScriptedKernel
) -> None:
    kernel.sends += [-errno.ECONNREFUSED] * 10
    sender.send_nowait(three(PacketTrain(b"x", 1, B)))
    assert kernel.payloads == [b"before", b"x", b"after"]
    assert sender.statistics().asynchronous_errors == {errno.ECONNREFUSED: 10}
    check_law(sender)


def test_a_refusal_that_never_ends_is_the_datagrams_own(
    sender: UdpBatchSender, kernel: scripted.ScriptedKernel
) -> None:
    kernel.sends += [Refuse(B, errno.ECONNREFUSED)] * 1000
    with pytest.raises(SendBatchError):
        sender.send_nowait(three(PacketTrain(b"x", 1, B)))
    assert kernel.payloads == [b"before", b"after"]
    check_law(sender)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux reports it on the next send")
def test_a_dead_peer_before_costs_no_later_datagram(backend: str, udp: ends.MakeSocket) -> None:
    outgoing, live = udp(), udp()
    outgoing.connect(ends.deafen(udp()))
    outgoing.send(b"nobody listens")
    sender = UdpBatchSender(outgoing)
    sender.try_queue_packet(b"hello", live.getsockname())
    sender.try_flush_best_effort()
    assert ends.read_plainly(live, 1) == [b"hello"]
    assert sender.statistics().asynchronous_errors == {errno.ECONNREFUSED: 1}


# -- GSO at fault, or not


def test_eio_switches_gso_off_and_everything_is_sent_in_the_same_call(
    sender: UdpBatchSender,
    kernel: scripted.ScriptedKernel,
    caplog: pytest.LogCaptureFixture,
) -> None:
    kernel.sends += [Refuse(B, errno.EIO, only_segmented=True)] * 90
    train = PacketTrain(bytes(100), 1, B)
    sender.send_nowait(three(train))
    assert kernel.payloads == [b"before", *train, b"after"]
    assert not sender.gso
    assert sender.statistics().gso_fallbacks == 1
    assert len(caplog.records) == 1
    sender.send_nowait(three(train))
    assert not any(gso for gso, _ in kernel.calls[-3:])
    assert sender.statistics().gso_fallbacks == 1
    check_law(sender)


def test_einval_that_single_datagrams_do_not_meet_switches_gso_off(
    sender: UdpBatchSender, kernel: scripted.ScriptedKernel
) -> None:
    kernel.sends += [Refuse(B, errno.EINVAL, only_segmented=True)] * 90
    train = PacketTrain(b"aabbcc", 2, B)
    sender.send_nowait(three(train))
    assert kernel.payloads == [b"before", b"aa", b"bb", b"cc", b"after"]
    assert not sender.gso
    assert kernel.singles == 1
    check_law(sender)


def test_einval_that_single_datagrams_meet_too_leaves_gso_on(
    sender: UdpBatchSender, kernel: scripted.ScriptedKernel
) -> None:
    kernel.sends += [Refuse(B, errno.EINVAL)] * 9
    with pytest.raises(SendBatchError):
        sender.send_nowait(three(PacketTrain(b"aabbcc", 2, B)))
    # Tried twice like everything else: the first error may be about an earlier datagram.
    assert kernel.singles == 2
    assert sender.gso


def test_the_test_of_gso_can_meet_a_full_socket(
    sender: UdpBatchSender, kernel: scripted.ScriptedKernel
) -> None:
    """The single datagram that is to tell gets EAGAIN; the question is asked again later."""
    kernel.sends += [-errno.EINVAL, -errno.EINVAL, -errno.EAGAIN]
    sender.try_queue_train(PacketTrain(b"aabb", 2, B))
    with pytest.raises(trio.WouldBlock):
        sender.try_flush_best_effort()
    assert sender.gso
    assert sender.statistics().datagrams_queued == 2
    kernel.sends += [-errno.EINVAL, 1]
    sender.try_flush_best_effort()
    assert kernel.payloads == [b"aa", b"bb"]
    assert not sender.gso
    check_law(sender)


@pytest.mark.parametrize("number", [errno.EIO, errno.EINVAL])
def test_an_error_for_a_single_datagram_says_nothing_of_gso(
    sender: UdpBatchSender, kernel: scripted.ScriptedKernel, number: int
) -> None:
    kernel.sends += [-number, -number]
    with pytest.raises(SendBatchError):
        sender.send_nowait(PacketBatch([PacketTrain(b"single", 6, A)]))
    assert sender.gso


@pytest.mark.parametrize(
    ("refused", "tries"),
    [
        pytest.param({b"aa", b"bb", b"cc"}, 2, id="all but the tail"),
        pytest.param({b"aa", b"bb", b"cc", b"d"}, 4, id="all"),
        pytest.param({b"d"}, 5, id="the tail"),
        pytest.param({b"bb"}, 5, id="one that an ICMP message hit at each try"),
        pytest.param(set(), 4, id="none"),
    ],
)
def test_of_a_train_that_is_too_long_each_size_gets_its_own_chance(
    sender: UdpBatchSender, kernel: scripted.ScriptedKernel, refused: set[bytes], tries: int
) -> None:
    """What is refused alone for its size speaks for its neighbours of that size."""

    def too_long(first: OutgoingMessage) -> int:
        data = first.payload
        return -errno.EMSGSIZE if first.datagrams > 1 or data in refused else 1

    train = PacketTrain(b"aabbccd", 2, B)
    kernel.sends += [too_long] * 30
    if refused:
        with pytest.raises(SendBatchError) as report:
            sender.send_nowait(three(train))
        failed = [packet for failure in report.value.failures for packet in failure.train]
        assert failed == sorted(refused)
    else:
        sender.send_nowait(three(train))
    good = [packet for packet in train if packet not in refused]
    assert kernel.payloads == [b"before", *good, b"after"]
    assert sender.gso
    assert sender.statistics().failures == ({errno.EMSGSIZE: len(refused)} if refused else {})
    assert kernel.singles == tries + (len(refused) == 3)  # the tail that goes is one more
    check_law(sender)


# -- the socket is gone


@pytest.mark.parametrize("number", [errno.EBADF, errno.ENOTSOCK])
def test_a_descriptor_that_is_no_socket_any_more_is_a_closed_resource(
    udp: ends.MakeSocket, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    kernel = scripted.install(monkeypatch)
    sender, receiver = UdpBatchSender(udp()), UdpBatchReceiver(udp())
    kernel.sends.append(-number)
    kernel.receives.append(-number)
    sender.try_queue_packet(b"x", A)
    with pytest.raises(trio.ClosedResourceError):
        sender.try_flush_best_effort()
    with pytest.raises(trio.ClosedResourceError):
        receiver.receive_nowait()
    check_law(sender)
