"""A protocol for any stream: ``GET 1000`` is answered with 1000 bytes, ``PUT 1000`` and as many
bytes with their hash. Both take a line."""

from __future__ import annotations

import hashlib
import random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    import trio

MAX_SIZE = 1 << 30  # bytes
MAX_LINE = 100
# No multiple of any packet's size, so that packets which change places are noticed.
_PATTERN = random.Random(1).randbytes(250_007)


class RefusedError(Exception):
    """The other side does not keep to the protocol."""


def content(size: int) -> Iterator[bytes]:
    """So many bytes, the same ones each time, piece by piece."""
    whole, rest = divmod(size, len(_PATTERN))
    for _ in range(whole):
        yield _PATTERN
    yield _PATTERN[:rest]


async def answer(stream: trio.abc.HalfCloseableStream) -> None:
    """The server's side of one stream."""
    line = bytearray()
    while b"\n" not in line:
        more = await stream.receive_some()
        if not more or len(line) > MAX_LINE:
            raise RefusedError("no line")
        line += more
    request, _, body = bytes(line).partition(b"\n")
    verb, _, number = request.partition(b" ")
    if verb not in (b"GET", b"PUT") or not number.isdigit() or int(number[:12]) > MAX_SIZE:
        raise RefusedError(request[:MAX_LINE])
    if verb == b"GET":
        for piece in content(int(number)):
            await stream.send_all(piece)
    else:
        await stream.send_all(await _hash(stream, int(number), body))
    await stream.send_eof()


async def get(stream: trio.abc.HalfCloseableStream, size: int) -> str:
    """Ask for so many bytes; returns their hash."""
    await stream.send_all(b"GET %d\n" % size)
    await stream.send_eof()
    return (await _hash(stream, size)).decode()


async def put(stream: trio.abc.HalfCloseableStream, size: int) -> str:
    """Send so many bytes; returns the hash of what arrived."""
    await stream.send_all(b"PUT %d\n" % size)
    for piece in content(size):
        await stream.send_all(piece)
    await stream.send_eof()
    answer = b""
    while more := await stream.receive_some():
        answer += more
    return answer.decode()


async def _hash(stream: trio.abc.ReceiveStream, size: int, first: bytes = b"") -> bytes:
    seen, digest = len(first), hashlib.sha256(first)
    while more := await stream.receive_some():
        digest.update(more)
        seen += len(more)
    if seen != size:
        raise RefusedError(f"{seen} bytes instead of {size}")
    return digest.hexdigest().encode()
