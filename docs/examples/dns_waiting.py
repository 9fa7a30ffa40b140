"""The questions that a DNS forwarder has passed on: each answer finds its client, and no other."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, NamedTuple

from dns_message import question_in

if TYPE_CHECKING:
    from snaptun_trio import Address

MOST = 10_000  # questions that may wait
PATIENCE, TIMEOUT = 0.5, 2.0  # seconds until one is asked again, and until it is given up


class Asked(NamedTuple):
    message: bytes  # as the server sees it
    number: bytes  # the client's own
    client: Address
    since: float


class Waiting:
    def __init__(self) -> None:
        self._asked: dict[bytes, Asked] = {}  # by the number that the server sees

    def ask(self, message: bytes, client: Address, now: float) -> bytes | None:
        """The question under a number that nobody can guess, `None` where it is not passed on."""
        if len(self._asked) >= MOST or not question_in(message) or message[2] >= 0x80:
            return None
        while (number := secrets.token_bytes(2)) in self._asked:
            pass
        self._asked[number] = asked = Asked(number + message[2:], message[:2], client, now)
        return asked.message

    def answer(self, message: bytes) -> tuple[bytes, Address] | None:
        """An answer under the client's number, and the client; `None` where nobody asked that."""
        asked = self._asked.get(message[:2])
        if asked is None or question_in(message) != question_in(asked.message):
            return None
        del self._asked[message[:2]]
        return asked.number + message[2:], asked.client

    def late(self, now: float) -> list[bytes]:
        """Give up what has waited for too long. What is to be asked again?"""
        self._asked = {n: asked for n, asked in self._asked.items() if asked.since > now - TIMEOUT}
        return [asked.message for asked in self._asked.values() if asked.since <= now - PATIENCE]
