# The cookbook's DNS forwarder: each answer finds its client, and what is lost is asked again.

from __future__ import annotations

import select
from typing import TYPE_CHECKING

import pytest

from . import ends
from .examples import Lines, example, port_in, program
from .real_software import SERVER, dnsmasq, dnsperf, needs

if TYPE_CHECKING:
    from pathlib import Path


def questions(*names: bytes) -> list[bytes]:
    """One of each name, all under one number."""
    return [example("dns_message").question(7, name) for name in names]


def test_a_forwarders_answers_find_their_clients_and_strangers_get_none() -> None:
    waiting = example("dns_waiting").Waiting()
    alice, bob = ("192.0.2.1", 1000), ("192.0.2.2", 2000)
    first, second = questions(b"a.example", b"b.example")
    asked = [waiting.ask(first, alice, 0.0), waiting.ask(second, bob, 0.0)]
    numbers = [message[:2] for message in asked]
    assert [message[2:] for message in asked] == [first[2:], second[2:]]
    assert numbers[0] != numbers[1]
    answers = [number + b"\x81\x80" + message[4:] for number, message in zip(numbers, asked)]
    free = next(number for number in (b"\0\0", b"\0\1", b"\0\2") if number not in numbers)
    for forged in (
        free + answers[0][2:],  # a number that nobody has
        numbers[0] + answers[1][2:],  # the answer to another question
        answers[0][:20],
        answers[0][:1],
        b"",
    ):
        assert waiting.answer(forged) is None
    assert waiting.answer(answers[1]) == (second[:2] + answers[1][2:], bob)
    assert waiting.answer(answers[1]) is None  # once is enough
    assert waiting.answer(answers[0]) == (first[:2] + answers[0][2:], alice)


def test_a_forwarder_asks_again_gives_up_and_takes_no_more_than_it_should(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = example("dns_waiting")
    monkeypatch.setattr(module, "MOST", 2)
    waiting, client = module.Waiting(), ("192.0.2.1", 1000)
    (message,) = questions(b"a.example")
    early = waiting.ask(message, client, 0.0)
    later = waiting.ask(message, client, 1.0)
    assert waiting.ask(message, client, 1.0) is None  # there are two
    assert waiting.late(module.PATIENCE / 2) == []
    assert waiting.late(module.PATIENCE) == [early]
    assert waiting.late(module.TIMEOUT) == [later]
    assert waiting.answer(early) is None  # it is too late
    assert waiting.ask(message, client, 2.0) is not None


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"\0\7\1\0\0\1",
        example("dns_message").question(7, b"a.example")[:-1],
        example("dns_message").HEADER.pack(7, 0x0100, 2, 0, 0, 0) + b"\1a\0\0\1\0\1\1b\0\0\1\0\1",
        example("dns_message").HEADER.pack(7, 0x8180, 1, 0, 0, 0) + b"\1a\0\0\1\0\1",
    ],
    ids=["nothing", "half a header", "cut", "two questions", "an answer"],
)
def test_a_forwarder_passes_on_nothing_but_questions(message: bytes) -> None:
    assert example("dns_waiting").Waiting().ask(message, ("192.0.2.1", 1000), 0.0) is None


@pytest.mark.slow
def test_a_forwarder_forwards_and_asks_again_what_was_lost(
    backend: str, udp: ends.MakeSocket
) -> None:
    server, *clients = udp(), udp(), udp()
    message = example("dns_message")
    expected = dict(zip(clients, questions(*message.HOSTS)))
    where = map(str, ends.address_of(server)[:2])
    seen: set[bytes] = set()
    with program("dns_forwarder", SERVER, "0", *where) as process:
        port = port_in(Lines(process.stdout).next())
        for client in clients:
            client.connect((SERVER, port))
            client.send(b"no question")
        while expected:
            for client, question in expected.items():
                client.send(question)
            # Whoever was given up, on a machine that is very busy, asks once more.
            while ready := select.select([server, *expected], [], [], 5)[0]:
                if server in ready:
                    packet, forwarder = server.recvfrom(512)
                    if packet in seen:  # what comes first is lost
                        server.sendto(message.answer_to(packet), forwarder)
                    seen.add(packet)
                else:
                    assert ready[0].recv(512) == message.answer_to(expected.pop(ready[0]))
                    if not expected:
                        break
    assert {packet[2:] for packet in seen} == {
        question[2:] for question in questions(*message.HOSTS)
    }


@pytest.mark.slow
@needs("dnsperf", "dnsmasq")
def test_dnsperf_loses_nothing_to_dnsmasq_behind_the_forwarder(
    backend: str, tmp_path: Path
) -> None:
    with dnsmasq() as port, program("dns_forwarder", SERVER, "0", SERVER, str(port)) as process:
        there = port_in(Lines(process.stdout).next())
        dnsperf(SERVER, there, tmp_path, queries=20_000, clients=20)
