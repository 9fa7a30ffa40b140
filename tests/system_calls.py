# The two system calls of the Linux backend, with a test's functions in their place; and the other
# hooks of the compiled part.
#
# A build for the tests (SNAPTUN_TRIO_TEST_HOOKS) calls them through pointers. A test's function
# gets what the C library would: addresses and numbers. It tells an errno with `ctypes.set_errno`.

from __future__ import annotations

import ctypes
import errno
import sys
import types
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

if sys.platform == "linux":
    try:
        from snaptun_trio._kernel import _rows
    except ImportError:
        _rows = None  # type: ignore[assignment]
else:
    _rows = None

if TYPE_CHECKING:
    from ctypes import _CFunctionType

Call = Callable[..., int]

_RECEIVE = (ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int, ctypes.c_void_p)
_SEND = (ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int)
_ReceiveFunction = ctypes.CFUNCTYPE(ctypes.c_int, *_RECEIVE, use_errno=True)
_SendFunction = ctypes.CFUNCTYPE(ctypes.c_int, *_SEND, use_errno=True)


def require_extension() -> None:
    """Skip where the compiled part is not built, or cannot be."""
    if _rows is None:
        pytest.skip("the compiled part is not built")


def require_hooks() -> None:
    """Skip where the compiled part has no hooks for tests."""
    require_extension()
    if not hasattr(_rows, "interpose"):
        pytest.skip("the compiled part is built without SNAPTUN_TRIO_TEST_HOOKS")


def _real(name: str, arguments: tuple[Any, ...]) -> Call:
    function = getattr(ctypes.CDLL(None, use_errno=True), name)
    function.argtypes = arguments
    function.restype = ctypes.c_int
    return function  # type: ignore[no-any-return]


def _guarded(function: Call) -> Call:
    """A function that raises fails its test, and the call that it stands for fails as well."""

    def call(*arguments: int) -> int:
        try:
            return function(*arguments)
        except BaseException as error:
            told = types.SimpleNamespace(
                exc_type=type(error),
                exc_value=error,
                exc_traceback=error.__traceback__,
                err_msg="Exception in place of a system call",
                object=function,
            )
            sys.unraisablehook(told)
            ctypes.set_errno(errno.EIO)
            return -1

    return call


class _SystemCalls:
    """What stands in the place of recvmmsg and sendmmsg; assigning to it puts it there."""

    def __init__(self) -> None:
        self._kept: tuple[Call, Call] | None = None
        self._callbacks: tuple[_CFunctionType, _CFunctionType] | None = None

    @property
    def functions(self) -> tuple[Call, Call] | None:
        """Both, or `None` for the C library's own."""
        return self._kept

    @functions.setter
    def functions(self, functions: tuple[Call, Call] | None) -> None:
        self._kept = functions
        callbacks = None
        addresses: list[int] = [0, 0]
        if functions is not None:
            receive, send = map(_guarded, functions)
            callbacks = _ReceiveFunction(receive), _SendFunction(send)
            addresses = [ctypes.cast(one, ctypes.c_void_p).value or 0 for one in callbacks]
        _rows.interpose(*addresses)  # type: ignore[attr-defined]
        self._callbacks = callbacks  # not before: the ones from before may not be called any more

    def both(self) -> tuple[Call, Call]:
        """What is called now."""
        return self._kept or (_real("recvmmsg", _RECEIVE), _real("sendmmsg", _SEND))


_calls = _SystemCalls()


def replace(
    monkeypatch: pytest.MonkeyPatch, receive: Call | None = None, send: Call | None = None
) -> tuple[Call, Call]:
    """Put functions in the place of recvmmsg and sendmmsg for the rest of the test.

    Returns those that were called before: what stands in between calls them in turn.
    """
    require_hooks()
    before = _calls.both()
    monkeypatch.setattr(_calls, "functions", (receive or before[0], send or before[1]))
    return before


class _Copying:
    """Batches with at most so many payload bytes get memory of their own."""

    @property
    def up_to(self) -> int:
        before: int = _rows.copy_up_to(0)  # type: ignore[attr-defined]
        self.up_to = before
        return before

    @up_to.setter
    def up_to(self, nbytes: int) -> None:
        _rows.copy_up_to(nbytes)  # type: ignore[attr-defined]


_copying = _Copying()


def copy_up_to(monkeypatch: pytest.MonkeyPatch, nbytes: int) -> None:
    """Let batches with at most so many payload bytes be copied; with -1 nothing is."""
    require_hooks()
    monkeypatch.setattr(_copying, "up_to", nbytes)


def fail_allocation(number: int) -> tuple[int, int]:
    """Let that one of the compiled part's own allocations fail, from 0 and from now on; -1: none.

    Returns how many were left to go to that of the call before, and how many are held.
    """
    told: tuple[int, int] = _rows.fail_allocation(number)  # type: ignore[attr-defined]
    return told


def held() -> int:
    """How many allocations of its own the compiled part holds; 0 where it has no hooks."""
    return fail_allocation(-1)[1] if hasattr(_rows, "fail_allocation") else 0


def forget_addresses() -> None:
    """Let the compiled part forget the addresses that it decoded."""
    _rows.forget()  # type: ignore[attr-defined]
