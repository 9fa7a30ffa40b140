# Lines from a pipe, one after the other. What they say, this file must not know.

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from trio.abc import ReceiveStream


class LineReader:
    """Reads lines from a stream that is read by nobody else."""

    def __init__(self, stream: ReceiveStream) -> None:
        self._stream = stream
        self._read = bytearray()

    async def read(self) -> bytes | None:
        """The next line without its end, or `None` at the end of the stream. A checkpoint."""
        await trio.lowlevel.checkpoint()
        while (end := self._read.find(b"\n")) < 0:
            piece = await self._stream.receive_some()
            if not piece:
                return None
            self._read += piece
        line = bytes(self._read[:end])
        del self._read[: end + 1]
        return line
