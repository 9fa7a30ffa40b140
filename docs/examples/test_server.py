from __future__ import annotations

import client
import dns_message
import dns_server
import pytest
import trio
import trio.testing

from snaptun_trio.testing import impair, memory_channel_pair

QUESTION = dns_message.question(17, b"www.example.org")
ADDRESS = bytes([192, 0, 2, 80])


def test_messages_alone() -> None:
    answer = dns_message.answer_to(QUESTION)
    assert answer is not None
    assert answer.startswith(QUESTION[:2])
    assert answer.endswith(ADDRESS)
    assert dns_message.answer_to(answer) is None  # it is no question
    for length in range(len(QUESTION)):
        assert dns_message.answer_to(QUESTION[:length]) is None


async def test_questions_are_answered_on_a_bad_network(
    autojump_clock: trio.testing.MockClock,
) -> None:
    near, far = memory_channel_pair()
    asking = impair(near, loss=0.5, delay=0.1, seed=1)
    answering = impair(far, loss=0.3, duplicate=0.3, delay=0.1, seed=2)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(dns_server.answer, answering)
        answer = await client.ask(asking, QUESTION)
        near.close()  # the server's loop ends, and so does the nursery
    assert answer == dns_message.answer_to(QUESTION)
    repeated = asking.counts["submitted"] - 1
    assert repeated > 0  # this seed loses something
    # It waited as long as it has to, and nobody else did.
    waited = sum(client.FIRST_PATIENCE * 2**attempt for attempt in range(repeated))
    assert trio.current_time() == pytest.approx(waited + 0.2)


async def test_nobody_answers(autojump_clock: trio.testing.MockClock) -> None:
    near, far = memory_channel_pair()
    with pytest.raises(trio.TooSlowError):
        await client.ask(near, QUESTION)
    assert trio.current_time() == pytest.approx(0.5 + 1 + 2 + 4)
    assert far.statistics().datagrams_waiting == client.TRIES


async def test_a_late_answer_to_another_question_is_passed_over() -> None:
    near, far = memory_channel_pair()
    await far.send_packet(b"\0\1 too late")
    await far.send_packet(QUESTION)
    assert await client.ask(near, QUESTION) == QUESTION
