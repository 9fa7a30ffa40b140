# What a pump's handler makes of a batch, and what becomes of the batch if it raises.
#
# The handler is the program's own function. Whatever it does, the account holds. This file must not
# know tasks, channels or sockets.

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from ._batch import PacketBatch
from ._brief import brief
from ._plain import check_plain, check_result

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._pump_account import PumpAccount
    from ._train import Address

    Handler: TypeAlias = Callable[[PacketBatch[Address]], PacketBatch | None]
    OnError: TypeAlias = Callable[[Exception, PacketBatch[Address]], object]


class Handling:
    """Calls a handler with batches, and keeps the account of its answers.

    Raises:
      TypeError: one of the functions is none, or async.
    """

    def __init__(self, handler: Handler, on_error: OnError | None, account: PumpAccount) -> None:
        check_plain("handler", handler, "batch")
        if on_error is not None:
            check_plain("on_error", on_error, "exception", "batch")
        self._handler = handler
        self._on_error = on_error
        self._account = account

    def __call__(self, batch: PacketBatch[Address]) -> PacketBatch | None:
        """What is to be sent, `None` for nothing.

        Raises:
          Exception: what the handler raises, where nobody is asked; or what that one raises.
        """
        account, received, answered = self._account, len(batch), 0
        account.received(batch)
        account.waiting += received  # for the handler, which may look at the statistics
        answer: object = None
        try:
            answer = self._handler(batch)
            if isinstance(answer, PacketBatch):
                answered = len(answer)
            elif answer is not None:
                check_result("handler", answer)
                raise TypeError(f"a handler returns a PacketBatch or None, not {brief(answer, 80)}")
        except Exception as error:
            if self._on_error is None:
                raise
            if (result := self._on_error(error, batch)) is not None:
                check_result("on_error", result)
        finally:
            account.waiting -= received
            account.answered(received, answered)
        return answer if answered and isinstance(answer, PacketBatch) else None
