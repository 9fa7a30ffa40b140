# Runs the body of a test in a forked child, and brings the outcome back as pytest's own.
#
# Some faults cannot be taken back: a seccomp filter, a namespace, a lowered limit, a signal timer.
# A test with such a fault runs in a child that dies with it. What the parent learns is whether
# the body passed, was skipped (with the reason) or failed (with the traceback as pytest prints
# it, the assertion's parts included). The child starts with the interpreter as it is, so nothing
# is imported twice; and it writes its own coverage data before it leaves.
#
# This file knows nothing of namespaces, sockets or the package.

from __future__ import annotations

import faulthandler
import gc
import os
import pickle
import select
import signal
import sys
import time
import warnings
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

HANG_GUARD = 120.0
"""Seconds of silence after which a child is given up, and prints where it stood."""

_inside = False


def inside_a_child() -> bool:
    """Whether this process is such a child already."""
    return _inside


def fork() -> int:
    """`os.fork`, without Python 3.12's warning that a process with threads should not."""
    with warnings.catch_warnings():
        # The other threads are trio's idle workers: they hold no lock that a child needs.
        warnings.simplefilter("ignore", DeprecationWarning)
        if "ASAN_OPTIONS" in os.environ:
            # The allocator of GCC 12's sanitizer has one, which a child inherits locked: let a
            # thread that has just begun, or ends, come to rest.
            time.sleep(0.2)
        return os.fork()


def kill(child: int) -> None:
    """End a child of this process at once, and wait until it has."""
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def run_in_child(
    body: Callable[[], object],
    *,
    describe: Callable[[pytest.ExceptionInfo[BaseException]], str] = lambda info: str(
        info.getrepr()
    ),
    seconds: float = HANG_GUARD,
) -> None:
    """Run ``body`` in a forked child; return, skip or fail as it did there."""
    reader, writer = os.pipe()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    child = fork()
    if child == 0:
        os.close(reader)
        _be_the_child(body, describe, writer)
    os.close(writer)
    try:
        with open(reader, "rb") as pipe:
            if not select.select([pipe], [], [], seconds)[0]:
                os.kill(child, signal.SIGABRT)  # faulthandler prints the tracebacks.
            report = pipe.read()
    except BaseException:  # A KeyboardInterrupt: do not leave the child behind.
        os.kill(child, signal.SIGKILL)
        raise
    finally:
        _, status = os.waitpid(child, 0)
    if not report:
        pytest.fail(f"the child ended without a word, {_how(status)}", pytrace=False)
    verdict, text = pickle.loads(report)
    if verdict == "skipped":
        pytest.skip(text)
    if verdict == "failed":
        pytest.fail(text, pytrace=False)


def _how(status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        return f"killed by {signal.Signals(-code).name}; its standard error may say where"
    return f"with exit code {code}"


def _be_the_child(
    body: Callable[[], object],
    describe: Callable[[pytest.ExceptionInfo[BaseException]], str],
    writer: int,
) -> NoReturn:
    global _inside
    _inside = True
    code = 1
    try:
        faulthandler.enable(2)
        # A shell has its background jobs ignore it, and what is ignored is inherited.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        unraisable: list[str] = []
        sys.unraisablehook = lambda hook: unraisable.append(
            f"{hook.err_msg or 'exception ignored in'} {hook.object!r}: {hook.exc_value!r}"
        )
        verdict, text = _outcome(body, describe)
        gc.collect()
        if verdict == "passed" and unraisable:
            verdict, text = "failed", "\n".join(unraisable)
        _save_coverage()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        with open(writer, "wb") as pipe:
            pipe.write(pickle.dumps((verdict, text)))
        code = 0
    finally:
        os._exit(code)  # Nothing of the parent's (its report, its fixtures) may be finished here.


def _outcome(
    body: Callable[[], object],
    describe: Callable[[pytest.ExceptionInfo[BaseException]], str],
) -> tuple[str, str]:
    try:
        body()
    except pytest.skip.Exception as error:
        return "skipped", error.msg or _reason_behind(error)
    except BaseException:
        return "failed", describe(pytest.ExceptionInfo.from_current())
    return "passed", ""


def _reason_behind(error: BaseException) -> str:
    # pytest-trio raises the skip of a test anew without its reason, while it handles the group
    # that trio made of the first.
    group = error.__context__
    while isinstance(group, BaseExceptionGroup):
        group = group.exceptions[0]
    return str(group or "")


def _save_coverage() -> None:
    coverage: Any = sys.modules.get("coverage")
    current = coverage and coverage.Coverage.current()
    if current:
        current.stop()
        current.save()
