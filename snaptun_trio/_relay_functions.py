# The functions of a relay that has a protocol: what they make of a batch, and what becomes of the
# relay when one raises.
#
# They are the program's own. Whatever they do is no exception here: the relay goes on to where its
# account is in order, and only then ends. This file must not know sessions or sockets.

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import trio

from ._batch import PacketBatch, batch_of, messages_of, packed_for
from ._coalesce import MAX_PAYLOAD_IPV6
from ._messages import TrainMessages
from ._plain import call, check_plain, check_result
from ._submitted import payloads_returned

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from ._messages import Messages
    from ._relay_client import RelayClient
    from ._train import Address, Packet

    Returned: TypeAlias = PacketBatch | Iterable[Packet] | None
    RelayFunction: TypeAlias = Callable[[PacketBatch[Address], RelayClient], Returned]
    Admit: TypeAlias = Callable[[Address, PacketBatch[Address]], bool]
    OnError: TypeAlias = Callable[[Exception, RelayClient], object]


class RelayFunctions:
    """The functions of one relay.

    Args:
      admit, from_client, from_target, on_error: see `UdpRelay`.

    Attributes:
      any: whether there is one that is called with batches.
      failed: whether one of them has raised and nobody was asked. None is called any more then.

    Raises:
      TypeError: one of them is no function, or async.
      ValueError: there is only ``on_error``.
    """

    def __init__(
        self,
        admit: Admit | None,
        from_client: RelayFunction | None,
        from_target: RelayFunction | None,
        on_error: OnError | None,
    ) -> None:
        for name, function, arguments in (
            ("admit", admit, ("address", "first_batch")),
            ("from_client", from_client, ("batch", "client")),
            ("from_target", from_target, ("batch", "client")),
            ("on_error", on_error, ("exception", "client")),
        ):
            if function is not None:
                check_plain(name, function, *arguments)
        self.admit, self.from_client, self.from_target = admit, from_client, from_target
        self.any = any(each is not None for each in (admit, from_client, from_target))
        if on_error is not None and not self.any:
            raise ValueError("on_error is asked when a function raises, and there is none")
        self._on_error = on_error
        self.failed = False
        self._failure: BaseException | None = None
        self._failing = trio.Event()

    def admits(self, first: Messages, client: RelayClient) -> bool:
        """Whether a new client may have a session. It raises nothing."""
        if self.admit is None or self.failed:
            return True
        try:
            verdict: object = call(self.admit, client.address, batch_of(first))
            check_result("admit", verdict)
            return bool(verdict)
        except BaseException as error:
            self._failed_with(error, client)
            return False

    def call(
        self, name: str, function: RelayFunction, came: Messages, client: RelayClient
    ) -> Messages | None:
        """What is to go on of what came, `None` for nothing. It raises nothing."""
        try:
            result = call(function, batch_of(came), client)
            if type(result) is list and len(result) == 1:  # as where each asks and waits
                packet = result[0]
                if type(packet) is bytes and len(packet) <= MAX_PAYLOAD_IPV6:
                    return TrainMessages.of_packet(packet)
            if isinstance(result, PacketBatch):
                messages = messages_of(result)[0]
                return messages if messages.count else None
            if result is None:
                return None
            return _packed(name, result, client)
        except BaseException as error:
            self._failed_with(error, client)
            return None

    def _failed_with(self, error: BaseException, client: RelayClient) -> None:
        """One has raised: see whether the relay goes on."""
        failure = self._asked(error, client)
        if failure is not None:
            self.failed, self._failure = True, failure
            self._failing.set()
        del failure  # or it would be in a frame that it is about

    def _asked(self, error: BaseException, client: RelayClient) -> BaseException | None:
        """What the relay ends with; `None` where it is to go on."""
        if self._on_error is None or not isinstance(error, Exception):
            return error
        try:
            check_result("on_error", call(self._on_error, error, client))
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

    @trio.lowlevel.enable_ki_protection
    async def watch(self, scope: trio.CancelScope) -> None:  # noqa: ASYNC910  # it waits
        """Cancel a scope when one of them raises. It is raised elsewhere: no nursery is to have it,
        which would make a group of it, or, of a group of the program's own, a part of its own."""
        await self._failing.wait()
        scope.cancel(reason="a function raised")


def _packed(name: str, result: object, client: RelayClient) -> Messages | None:
    """The packets that a function returned, whoever they are for."""
    packets = payloads_returned(name, result, "a PacketBatch, the packets or None")
    return messages_of(packed_for(client.address, packets))[0] if packets else None
