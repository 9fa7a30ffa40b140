# Control-C between any two bytecodes: F54 of the fault matrix. Nothing that was received is lost.
#
# A signal is heard between two bytecodes of the main thread, and trio lets it raise there unless
# the frame is protected. So a tracer goes through a run bytecode by bytecode and raises where the
# signal would: at the first bytecode that is not protected, in the next run at the second, and so
# on until a run comes to its end. Only the library's frames count, and what stands between them
# and the program; what a program does between its own bytecodes is its own affair.

from __future__ import annotations

import gc
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio
from trio._core._ki import ki_protection_enabled

import snaptun_trio
from snaptun_trio import PacketBufPool, PacketTrain, UdpBatchReceiver

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import CodeType, FrameType
    from typing import TypeAlias

    from snaptun_trio import Address

    from . import ends, scripted

    TraceFunction: TypeAlias = Callable[[FrameType, str, object], "TraceFunction | None"]

PACKAGE = str(Path(snaptun_trio.__file__).parent)
PACKETS = [b"a1", b"a2", b"b1", b"b2", b"b3"]
TRAINS = [PacketTrain(b"a1a2", 2, ("192.0.2.1", 9)), PacketTrain(b"b1b2b3", 2, None)]

pytestmark = pytest.mark.skipif(
    sys.implementation.name != "cpython", reason="only CPython traces each bytecode"
)


class Interrupter:
    """Raises at the bytecode of this number, of those at which a signal could.

    Attributes:
      fired: whether it came to that.
      entered: the packets with which ``handler`` was entered.
    """

    def __init__(self, number: int, handler: CodeType | None = None) -> None:
        self._left = number
        self._handler = handler
        self.fired = False
        self.entered: list[bytes] = []

    def _call(self, frame: FrameType, event: str, _: object) -> TraceFunction | None:
        if frame.f_code is self._handler:
            self.entered.append(frame.f_locals["packet"])
        elif not (
            frame.f_code.co_filename.startswith(PACKAGE) or frame.f_code.co_name == "__anext__"
        ):
            return None
        frame.f_trace_opcodes = True
        return self._step

    def _step(self, frame: FrameType, event: str, _: object) -> TraceFunction | None:
        if event == "opcode" and not self.fired and not ki_protection_enabled(frame):
            self._left -= 1
            if self._left < 0:
                self.fired = True
                raise KeyboardInterrupt
        return self._step

    def run(self, function: Callable[..., object], *arguments: object) -> None:
        """Run a function; that it was interrupted is no error."""
        before = sys.gettrace()  # coverage's, perhaps
        # CPython 3.12 hears of no frame's wish for opcodes but one from before it starts to trace.
        sys._getframe().f_trace_opcodes = True
        sys.settrace(self._call)
        try:
            function(*arguments)
        except KeyboardInterrupt:
            assert self.fired
        finally:
            sys.settrace(before)


def interrupters(handler: CodeType | None = None) -> Iterator[Interrupter]:
    """One for each bytecode, until a run was not interrupted."""
    for number in range(100_000):
        interrupter = Interrupter(number, handler)
        yield interrupter
        if not interrupter.fired:
            break


def rest_of(receiver: UdpBatchReceiver) -> list[bytes]:
    """What the next receives bring."""
    found: list[bytes] = []
    while True:
        try:
            found += [packet for packet, _ in receiver.receive_nowait()]
        except trio.WouldBlock:
            return found


@pytest.fixture
def receiver(kernel: scripted.ScriptedKernel, udp: ends.MakeSocket) -> UdpBatchReceiver:
    kernel.waits.always_ready = True
    return UdpBatchReceiver(udp())


def test_f54_control_c_anywhere_in_recv_batch_loses_no_datagram(
    receiver: UdpBatchReceiver, kernel: scripted.ScriptedKernel
) -> None:
    returned: list[bytes] = []

    def handler(packet: bytes, address: Address | None) -> None:
        returned.append(packet)

    async def main() -> None:
        await receiver.recv_batch(handler)

    runs = 0
    for interrupter in interrupters(handler.__code__):
        runs += 1
        returned.clear()
        kernel.receives.append(TRAINS)
        interrupter.run(trio.run, main)
        assert interrupter.entered + rest_of(receiver) == PACKETS
        assert len(interrupter.entered) - len(returned) in (0, 1)
        statistics = receiver.statistics()
        assert statistics.datagrams_received == statistics.datagrams_delivered
    assert returned == PACKETS
    assert runs > 5 * len(PACKETS), "the handler can be interrupted"


@pytest.mark.parametrize("queued_late", [False, True])
def test_f54_control_c_anywhere_in_a_loop_over_the_receiver_loses_no_datagram(
    receiver: UdpBatchReceiver, kernel: scripted.ScriptedKernel, queued_late: bool
) -> None:
    seen: list[bytes] = []

    async def main() -> None:
        async for batch in receiver:
            sys.settrace(None)  # from here on it is the program's
            seen.extend([packet for packet, _ in batch])
            return

    for interrupter in interrupters():
        seen.clear()
        kernel.receives.extend([-11, TRAINS] if queued_late else [TRAINS])
        interrupter.run(trio.run, main)
        assert seen + rest_of(receiver) == PACKETS


def test_f54_control_c_anywhere_in_receive_nowait_loses_no_datagram(
    receiver: UdpBatchReceiver, kernel: scripted.ScriptedKernel
) -> None:
    seen: list[bytes] = []

    def receive() -> None:
        batch = receiver.receive_nowait()
        sys.settrace(None)
        seen.extend([packet for packet, _ in batch])

    async def main() -> None:
        receive()

    for interrupter in interrupters():
        seen.clear()
        kernel.receives.append(TRAINS)
        interrupter.run(trio.run, main)
        assert seen + rest_of(receiver) == PACKETS


def test_f54_control_c_anywhere_in_getting_a_buffer_leaves_nothing_lent() -> None:
    pool = PacketBufPool(100, capacity=1)

    async def main() -> None:
        view = pool.get()
        view[:1] = b"x"

    for interrupter in interrupters():
        interrupter.run(trio.run, main)
        gc.collect()
        assert pool.statistics().slabs_in_use == 0
    assert pool.statistics().allocated == 1


def test_f54_control_c_anywhere_in_closing_a_receiver_still_closes_it(
    kernel: scripted.ScriptedKernel, udp: ends.MakeSocket
) -> None:
    for interrupter in interrupters():
        receiver = UdpBatchReceiver(udp())

        async def main(receiver: UdpBatchReceiver = receiver) -> None:
            receiver.close()

        interrupter.run(trio.run, main)
        with pytest.raises(trio.ClosedResourceError):
            receiver.receive_nowait()
