# One contender in a process of its own.
#
# So no contender inherits another's heap, caches or garbage, and each starts the same. The process
# lives for the whole run; the work is sent to it sitting by sitting.

from __future__ import annotations

import faulthandler
import importlib
import multiprocessing
import os
import socket
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from ._scene import open_scene

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future
    from types import ModuleType
    from typing import ParamSpec

    from ._shapes import Shape

    P = ParamSpec("P")
T = TypeVar("T")

HANG_GUARD = 120.0  # seconds; nothing here takes ten


def start_guard() -> None:
    """In a child: from now on, end the process with a traceback if this takes far too long."""
    faulthandler.dump_traceback_later(HANG_GUARD, exit=True)


def new_process() -> ProcessPoolExecutor:
    """A process that starts from nothing, for a measurement that is over soon."""
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(1, mp_context=context, initializer=start_guard)


def in_new_process(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call the function in a process that starts from nothing and ends with it."""
    with new_process() as process:
        return process.submit(function, *args, **kwargs).result()


class Contender:
    """The parent's handle on a contender's process, which starts at once."""

    def __init__(self, module: str) -> None:
        self._module = module
        self._process = new_process()
        self._described = self._process.submit(describe, module)

    def wait(self) -> None:
        """Wait until it is ready. Raises `ImportError` where it is not installed."""
        try:
            self.name, self.works = self._described.result()
        except BaseException:
            self.close()
            raise

    def submit(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Let the contender's process call the function."""
        return self._process.submit(guarded, partial(function, *args, **kwargs))

    def sit(self, work: str, shape: Shape, ipv6: bool, budget_ns: int) -> float:
        """Let the contender do the work; CPU nanoseconds a datagram."""
        return self.submit(sit, self._module, work, shape, ipv6, budget_ns).result()

    def close(self) -> None:
        """End the process."""
        self._process.shutdown()


def load(module: str) -> ModuleType:
    """The contender's module."""
    return importlib.import_module(f".{module}", __package__)


def describe(module: str) -> tuple[str, frozenset[str]]:
    """In the child: the contender's name and works."""
    contender = load(module)
    faulthandler.cancel_dump_traceback_later()  # this process waits for its turns
    # All on one processor: a contender that is moved to another in the middle of a sitting pays
    # half as much again, for it frees there what the kernel allocated here.
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    # Freeing one large block teaches malloc not to map each large block anew. Every program that
    # has run for a while is past that; without it asyncio, whose transport asks for 256 KiB a
    # datagram, would look five times as slow as it mostly is.
    bytearray(1 << 19)
    return contender.NAME, frozenset(contender.WORKS)


def sit(module: str, work: str, shape: Shape, ipv6: bool, budget_ns: int) -> float:
    """In the child: one sitting."""
    contender = load(module)
    family = socket.AF_INET6 if ipv6 else socket.AF_INET
    most = getattr(contender, "MOST_DATAGRAMS", None)
    with open_scene(shape, family, budget_ns, most) as scene:
        contender.WORKS[work](scene)
        return scene.ns_each


def guarded(function: Callable[[], T]) -> T:
    """In the child: call the function, under the guard."""
    start_guard()
    try:
        return function()
    finally:
        faulthandler.cancel_dump_traceback_later()
