from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from snaptun_trio import PacketBatch, PacketTrain, open_batch_pump

if TYPE_CHECKING:
    from snaptun_trio import Address


def answer_to(question: bytes) -> bytes | None:
    """A protocol: two bytes to tell questions apart, then a word, which goes back reversed."""
    return question[:2] + question[:1:-1] if len(question) > 2 else None


def answers_to(questions: PacketBatch[Address]) -> PacketBatch:
    """Each answer goes where its question came from, and leaves from the address that was asked."""
    replies: list[PacketTrain] = []
    for train in questions.trains:
        answers = [answer for packet in train if (answer := answer_to(packet)) is not None]
        replies += train.reply(answers)
    return PacketBatch(replies)


async def serve(port: int, task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED) -> None:
    """Answer on all addresses of this machine, IPv4 and IPv6, until cancelled."""
    async with open_batch_pump(("::", port), packet_info=True, handler=answers_to) as pump:
        task_status.started(pump.local_address[1])
        await trio.sleep_forever()
