# What the compiled part reads of received messages, against what Python reads: F57 of the fault
# matrix. Whatever the kernel reports, the two readings are one.
#
#     pytest -m soak tests/faults/test_twin_fuzz.py --inputs 10000000 --seed 1

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

import pytest

from snaptun_trio._kernel import _cmsg, _sockaddr, choose_backend

from .. import system_calls
from .raw_messages import CONTROL, MOST, NAME, PATTERN, SLOT, Handover, Raw, Source

if TYPE_CHECKING:
    from snaptun_trio import Address

pytestmark = [
    pytest.mark.usefixtures("linux_backend"),
    pytest.mark.skipif(struct.calcsize("P") != 8, reason="the headers are written by their places"),
]

IN_A_NORMAL_RUN = 30_000
COPIED_UP_TO = (-1, 4096, 1 << 30)  # nothing; what is usual; everything


class Reading:
    """What Python reads of one message."""

    def __init__(self, index: int, message: Raw) -> None:
        self.length = min(message.nbytes, SLOT)
        self.data = PATTERN[index % 251 : index % 251 + self.length]
        control = message.control[: min(message.control_length, CONTROL)]
        self.told = _cmsg.decode(_cmsg.parse(control))
        self.address = _sockaddr.decode(message.name[: min(message.name_length, NAME)])
        self.size = min(self.told.segment_size or self.length, self.length)
        self.flags = message.flags & 0x28
        self.cut = bool(self.flags) or message.nbytes > SLOT

    @property
    def datagrams(self) -> int:
        return -(-self.length // self.size) if self.length else 1

    def packets(self) -> list[tuple[bytes, Address | None]]:
        starts = range(0, self.length, self.size) if self.length else (0,)
        return [(self.data[at : at + self.size], self.address) for at in starts]


def check_row(row: Any, message: Raw, reading: Reading) -> None:  # noqa: ANN401
    data, nbytes, size, address, control, flags = row
    assert (nbytes, size, address, flags) == (
        message.nbytes,
        reading.size,
        reading.address,
        reading.flags,
    )
    assert data == reading.data
    told = _cmsg.decode(_cmsg.parse(control)) if control else _cmsg.NOTHING
    assert told[1:] == reading.told[1:]
    if reading.cut:  # it is read once more, and the segment size with it
        assert told == reading.told


def check(rows: Any, messages: list[Raw], *, closely: bool) -> None:  # noqa: ANN401
    """Compare row by row; ``closely`` goes through packets and trains as well."""
    readings = [Reading(index, message) for index, message in enumerate(messages)]
    assert rows.count == len(messages)
    for index, (message, reading) in enumerate(zip(messages, readings)):
        try:
            check_row(rows.row(index), message, reading)
        except AssertionError as error:
            raise AssertionError(f"{message} is row {rows.row(index)}") from error
    assert rows.datagrams == sum(reading.datagrams for reading in readings)
    assert rows.nbytes == sum(reading.length for reading in readings)
    assert rows.cut == any(reading.cut for reading in readings)
    if rows.plain:
        assert not any(any(reading.told[1:]) for reading in readings)
    if not closely:
        return
    assert rows.packets() == [packet for reading in readings for packet in reading.packets()]
    for train, reading in zip(rows.trains(), readings, strict=True):
        assert (train.data, min(train.segment_size, train.nbytes), train.address) == (
            reading.data,
            reading.size,
            reading.address,
        )
        assert (train.ecn, train.local_address, train.interface_index, train.timestamp_ns) == (
            reading.told[1:]
        )


def fuzz(monkeypatch: pytest.MonkeyPatch, inputs: int, seed: int) -> None:
    """Hand over so many messages, as many in a call as there can be, and less now and then."""
    choose_backend()  # which tells the compiled part how addresses and trains are made
    from snaptun_trio._kernel import _rows

    source, kernel = Source(seed), Handover()
    system_calls.replace(monkeypatch, kernel.receive)
    pool = _rows.Pool(SLOT, 1)
    call = done = 0
    while done < inputs:
        count = min(inputs - done, (MOST, MOST, MOST, MOST, MOST, 100, 10, 1)[call % 8])
        kernel.messages = [source.message() for _ in range(count)]
        system_calls.copy_up_to(monkeypatch, COPIED_UP_TO[call % 3])
        rows = pool.receive(0, count, MOST)
        check(rows, kernel.messages, closely=call % 5 == 0)
        del rows
        assert pool.statistics()[0] == 0
        done, call = done + count, call + 1
    assert pool.statistics()[4] == 1, "one slab served for all"


def test_f57_the_compiled_part_and_python_read_the_same(
    monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    fuzz(monkeypatch, IN_A_NORMAL_RUN, seed)


@pytest.mark.soak
def test_soak_the_compiled_part_and_python_read_the_same(
    monkeypatch: pytest.MonkeyPatch, inputs: int, seed: int
) -> None:
    fuzz(monkeypatch, inputs, seed)
    print(f"{inputs} messages read twice, 0 differences")
