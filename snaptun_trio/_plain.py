# Plain functions: what is called for each datagram or batch, and cannot wait.
#
# An async function in such a place does nothing at all, in silence but for a warning of Python's
# about a coroutine. This file knows nothing of what is handled.

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, Coroutine

from ._brief import brief


def check_plain(name: str, function: object) -> None:
    """Make sure that an argument is a function, and not an async one.

    Raises:
      TypeError: it is something else.
    """
    if not callable(function):
        raise TypeError(f"{name} is a plain function, not {brief(function, 80)}")
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        raise TypeError(f"{name} is a plain function, not an async one: {brief(function, 80)}")


def check_result(name: str, result: object) -> None:
    """Make sure that what a function returned shows it to be a plain one.

    Of a lambda, or of an object with an async ``__call__``, only that tells.

    Raises:
      TypeError: it is what an async function returns. A coroutine is closed, so that Python does
        not complain of it again.
    """
    if isinstance(result, Coroutine | AsyncGenerator):
        if isinstance(result, Coroutine):
            result.close()
        raise TypeError(
            f"{name} is a plain function, not an async one: it returned {brief(result, 80)}, "
            "for which nobody waits"
        )
