# Plain functions: what is called for each datagram or batch, and cannot wait.
#
# An async function in such a place does nothing at all, in silence but for a warning of Python's
# about a coroutine. This file knows nothing of what is handled.

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any

import trio

from ._brief import brief


def check_plain(name: str, function: object, *arguments: str) -> None:
    """Make sure that an argument is a function, and not an async one.

    Args:
      name: the argument.
      function: what was given.
      arguments: what it will be called with, each by its name.

    Raises:
      TypeError: it is something else.
    """
    if not callable(function):
        raise TypeError(f"{name} is a plain function, not {brief(function, 80)}")
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        raise TypeError(f"{name} is a plain function, not an async one: {brief(function, 80)}")
    if arguments and not _takes(function, arguments):
        called = ", ".join(arguments)
        raise TypeError(f"{name} is called with ({called}), which {brief(function, 80)} cannot be")


def _takes(function: Callable[..., object], arguments: tuple[str, ...]) -> bool:
    """Whether a function can be called with so many arguments, as far as it tells."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # of some builtins
        return True
    try:
        signature.bind(*arguments)
    except TypeError:
        return False
    return True


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


@trio.lowlevel.disable_ki_protection
def call(function: Callable[..., Any], *arguments: object) -> Any:  # noqa: ANN401
    """Call a function of the program's, wherever that is: Control-C interrupts it."""
    return function(*arguments)
