# The functions of a relay that has a protocol: what they make of a batch, and what becomes of the
# relay when one raises.
#
# They are the program's own. Whatever they do is no exception here: the relay goes on to where its
# account is in order, and only then ends. This file must not know sessions or sockets.

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import trio

from ._batch import PacketBatch, batch_of, messages_of
from ._brief import brief
from ._plain import check_plain, check_result

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._messages import Messages
    from ._relay_client import RelayClient
    from ._train import Address

    RelayFunction: TypeAlias = Callable[[PacketBatch[Address], RelayClient], PacketBatch | None]
    OnError: TypeAlias = Callable[[Exception, RelayClient], object]


class RelayFunctions:
    """The functions of one relay.

    Args:
      from_client, from_target, on_error: see `UdpRelay`.

    Attributes:
      any: whether there is one that is called with batches.
      failed: whether one of them has raised and nobody was asked. None is called any more then.

    Raises:
      TypeError: one of them is no function, or async.
      ValueError: there is only ``on_error``.
    """

    def __init__(
        self,
        from_client: RelayFunction | None,
        from_target: RelayFunction | None,
        on_error: OnError | None,
    ) -> None:
        for name, function in (
            ("from_client", from_client),
            ("from_target", from_target),
            ("on_error", on_error),
        ):
            if function is not None:
                check_plain(name, function)
        self.from_client, self.from_target = from_client, from_target
        self.any = from_client is not None or from_target is not None
        if on_error is not None and not self.any:
            raise ValueError("on_error is asked when a function raises, and there is none")
        self._on_error = on_error
        self.failed = False
        self._failure: BaseException | None = None
        self._failing = trio.Event()

    def call(
        self, name: str, function: RelayFunction, came: Messages, client: RelayClient
    ) -> Messages | None:
        """What is to go on of what came, `None` for nothing. It raises nothing."""
        try:
            result = _call(function, batch_of(came), client)
            if result is None:
                return None
            if isinstance(result, PacketBatch):
                messages = messages_of(result)[0]
                return messages if messages.count else None
            check_result(name, result)
            raise TypeError(f"{name} returns a PacketBatch or None, not {brief(result, 80)}")
        except BaseException as error:
            failure = self._asked(error, client)
            if failure is not None:
                self.failed, self._failure = True, failure
                self._failing.set()
            del failure  # or it would be in a frame that it is about
            return None

    def _asked(self, error: BaseException, client: RelayClient) -> BaseException | None:
        """What the relay ends with; `None` where it is to go on."""
        if self._on_error is None or not isinstance(error, Exception):
            return error
        try:
            check_result("on_error", _call(self._on_error, error, client))
        except BaseException as failure:
            return failure
        return None

    def raise_failure(self) -> None:
        """Raise what one of them has raised, unless that was done."""
        failure, self._failure = self._failure, None
        try:
            if failure is not None:
                raise failure
        finally:
            del failure

    async def watch(self) -> None:  # noqa: ASYNC910  # it waits
        """Raise what one of them raises, when it does."""
        await self._failing.wait()
        self.raise_failure()


@trio.lowlevel.disable_ki_protection
def _call(function: Callable[..., object], *arguments: object) -> object:
    """The function is the program's: Control-C interrupts it."""
    return function(*arguments)
