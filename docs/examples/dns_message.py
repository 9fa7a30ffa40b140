"""As much of a DNS message (RFC 1035) as it takes to answer for a few names."""

from __future__ import annotations

import ipaddress
import struct

HOSTS = {b"www.example.org": "192.0.2.80", b"mail.example.org": "192.0.2.25"}

HEADER = struct.Struct("!6H")  # number, flags, and how many of each section
RECORD = struct.Struct("!3HIH")  # name, type, class, time to live, length
IS_ANSWER, OPCODE, AUTHORITATIVE, ASKED_TO_RECURSE = 0x8000, 0x7800, 0x0400, 0x0100
NAME_ERROR = 3
A, IN = 1, 1
NAME_OF_QUESTION = 0xC000 | HEADER.size  # a pointer to it


def question(number: int, name: bytes) -> bytes:
    """A question for the address of a name."""
    labels = b"".join(bytes([len(label)]) + label for label in name.split(b"."))
    return HEADER.pack(number, ASKED_TO_RECURSE, 1, 0, 0, 0) + labels + struct.pack("!xHH", A, IN)


def answer_to(message: bytes) -> bytes | None:
    """The answer to a question, `None` where a message is none that can be answered."""
    try:
        number, flags, questions, *_ = HEADER.unpack_from(message)
        if flags & (IS_ANSWER | OPCODE) or questions != 1:
            return None  # who answers answers may do so for ever
        labels: list[bytes] = []
        end = HEADER.size
        while length := message[end]:
            labels.append(message[end + 1 : end + 1 + length].lower())
            end += 1 + length
        kind, network = struct.unpack_from("!xHH", message, end)
    except (IndexError, struct.error):
        return None  # it ends too early
    host = HOSTS.get(b".".join(labels))
    record = b""
    if host is not None and (kind, network) == (A, IN):
        record = RECORD.pack(NAME_OF_QUESTION, A, IN, 300, 4) + ipaddress.ip_address(host).packed
    flags = IS_ANSWER | AUTHORITATIVE | flags & ASKED_TO_RECURSE | (NAME_ERROR if not host else 0)
    header = HEADER.pack(number, flags, 1, 1 if record else 0, 0, 0)
    return header + message[HEADER.size : end + 5] + record


def question_in(message: bytes) -> bytes | None:
    """The question of a message as it stands there, `None` where there is not just one."""
    end = HEADER.size
    try:
        while length := message[end]:
            end += 1 + length
    except IndexError:
        return None  # it ends too early
    one = message[4:6] == b"\0\1" and len(message) >= end + 5
    return message[HEADER.size : end + 5] if one else None
