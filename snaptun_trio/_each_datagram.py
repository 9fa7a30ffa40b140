# A handler for each datagram: how it is called.
#
# This file must not know receivers.

from __future__ import annotations

from itertools import starmap
from operator import length_hint
from typing import TYPE_CHECKING

import trio

from ._plain import check_result

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ._train import Address


@trio.lowlevel.disable_ki_protection
def call_for_each(
    handler: Callable[[bytes, Address], object],
    datagrams: Iterator[tuple[bytes, Address]],
) -> None:
    """Call the handler for each datagram, so that it can be interrupted, and nothing between.

    That a datagram is taken from the iterator and that the handler is entered with it is one step
    in C: no signal is heard in between.

    Raises:
      RuntimeError: the handler raised StopIteration, which here would end the loop (PEP 479).
    """
    expected = length_hint(datagrams)
    for result in starmap(handler, datagrams):
        expected -= 1
        if result is not None:
            check_result("handler", result)
    if expected:
        raise RuntimeError("handler raised StopIteration")
