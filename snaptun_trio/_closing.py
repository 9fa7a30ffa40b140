# Closing: what receiver, sender and pump share, both ways to be closed.
#
# Closing never waits for anything, so `close` is the real thing, and ``with`` does. trio's
# interfaces ask for `aclose` and ``async with`` as well. What closing means is each one's own.

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Self

import trio

if TYPE_CHECKING:
    from types import TracebackType


class Closing(trio.abc.AsyncResource):
    """Something that is closed without waiting."""

    __slots__ = ()

    @abstractmethod
    def close(self) -> None:
        """Close it, now and for good. Closing again does nothing."""

    async def aclose(self) -> None:
        """`close`, and a checkpoint. Nothing is waited for."""
        self.close()
        await trio.lowlevel.checkpoint()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
