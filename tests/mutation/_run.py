# Runs each mutant in forked children, several mutants at a time, until a test fails.
#
# A child imports the package with the fault, and runs the tests that can see it. It tells when each
# test begins, so that a hang costs a small multiple of what the test takes without a fault.
# Whatever the fault does to the child, a crash of the interpreter included, stays in it.

from __future__ import annotations

import enum
import importlib.abc
import importlib.machinery
import importlib.util
import os
import select
import signal
import sys
import time
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, NoReturn

import attrs

from . import _pytest
from ._package import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import CodeType, ModuleType

    from ._map import Map
    from ._mutant import Mutant
    from ._package import Package

# A test may take so many seconds, and so many times what it takes without a fault, before it counts
# as hung; and before the first one there is the import.
_SECONDS_MORE = 10.0
_TIMES_MORE = 20.0
_IMPORT = 60.0

# Most mutants fall to the first few tests; collecting the others' files takes longer than those.
_FIRST_TESTS = 12
_FIRST_FILES = 3


class Outcome(enum.Enum):
    """What became of a mutant."""

    KILLED = "killed"
    CRASHED = "crashed"
    TIMED_OUT = "timed out"
    SURVIVED = "survived"
    UNTOUCHED = "untouched"

    @property
    def seen(self) -> bool:
        """Whether the suite saw the fault."""
        return self in (Outcome.KILLED, Outcome.CRASHED, Outcome.TIMED_OUT)


@attrs.frozen
class Verdict:
    """What became of a mutant, and which test decided it."""

    mutant: Mutant
    outcome: Outcome
    test: str = ""
    seconds: float = 0.0


class _Loader(importlib.machinery.SourceFileLoader):
    """Loads one module with other code than its file has."""

    def __init__(self, mutant: Mutant, code: CodeType) -> None:
        super().__init__(mutant.module, str(mutant.path))
        self._code = code

    def get_code(self, fullname: str) -> CodeType:
        return self._code


class _Hook(importlib.abc.MetaPathFinder):
    """Finds one module before anybody else does."""

    def __init__(self, mutant: Mutant, code: CodeType) -> None:
        self._mutant, self._code = mutant, code

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != self._mutant.module:
            return None
        loader = _Loader(self._mutant, self._code)
        return importlib.util.spec_from_file_location(fullname, self._mutant.path, loader=loader)


def _be_the_child(mutant: Mutant, code: CodeType, tests: Sequence[str], pipe: int) -> NoReturn:
    def tell(line: str) -> None:
        os.write(pipe, line.encode() + b"\n")

    try:
        os.setsid()
        os.chdir(ROOT)
        _pytest.silence()
        sys.meta_path.insert(0, _Hook(mutant, code))
        killer = _pytest.first_failure(tests, tell)
        tell(f"killed {killer}" if killer else "survived")
    except BaseException:
        tell("killed the import")
    finally:
        os._exit(0)


class _Trial:
    """A mutant that is being run, one stage of its tests after the other."""

    def __init__(self, mutant: Mutant, stages: list[list[str]], bounds: Map) -> None:
        self.mutant = mutant
        self._code = compile(mutant.source(), mutant.path, "exec", dont_inherit=True)
        self._stages = stages
        self._bounds = bounds
        self._began = time.monotonic()
        self._start()

    def _start(self) -> None:
        tests = self._stages.pop(0)
        reader, writer = os.pipe()
        self._child = os.fork()
        if self._child == 0:
            os.close(reader)
            _be_the_child(self.mutant, self._code, tests, writer)
        os.close(writer)
        os.set_blocking(reader, False)
        self.pipe = reader
        self._rest = b""
        self._test = ""
        self._deadline = time.monotonic() + _IMPORT

    def step(self) -> Verdict | None:
        """Hear what the child has to say; the verdict, when there is one."""
        ended = os.waitpid(self._child, os.WNOHANG)[0] != 0  # before reading: nothing comes after
        for line in self._read():
            verb, _, rest = line.partition(" ")
            if verb == "start":
                self._test = rest
                usual = self._bounds.tests[rest].seconds
                self._deadline = time.monotonic() + _SECONDS_MORE + _TIMES_MORE * usual
            elif verb == "killed":
                return self._over(Outcome.KILLED, rest, ended)
            elif self._stages:
                self._clean_up(ended)
                self._start()
                return None
            else:
                return self._over(Outcome.SURVIVED, "", ended)
        if ended:
            return self._over(Outcome.CRASHED, self._test, ended)
        if time.monotonic() > self._deadline:
            return self._over(Outcome.TIMED_OUT, self._test, ended)
        return None

    def _read(self) -> list[str]:
        while True:
            try:
                chunk = os.read(self.pipe, 65_536)
            except BlockingIOError:
                break
            if not chunk:
                break
            self._rest += chunk
        *lines, self._rest = self._rest.split(b"\n")
        return [line.decode() for line in lines]

    def _over(self, outcome: Outcome, test: str, ended: bool) -> Verdict:
        self._clean_up(ended)
        return Verdict(self.mutant, outcome, test, time.monotonic() - self._began)

    def _clean_up(self, ended: bool) -> None:
        """End the child and all that it started."""
        try:
            os.killpg(self._child, signal.SIGKILL)
        except ProcessLookupError:
            if not ended:  # it has not come to its setsid yet
                os.kill(self._child, signal.SIGKILL)
        if not ended:
            os.waitpid(self._child, 0)
        os.close(self.pipe)

    def abandon(self) -> None:
        """End it without a verdict."""
        self._clean_up(ended=False)


def _stages(tests: list[str], killers: Counter[str]) -> list[list[str]]:
    """First some tests that are quick, or that saw other faults in the same function."""
    known = [test for test, _ in killers.most_common(5) if test in {*tests}]
    first: list[str] = []
    files: set[str] = set()
    for test in dict.fromkeys([*known, *tests]):
        name = test.partition("::")[0]
        if len(first) < _FIRST_TESTS and (name in files or len(files) < _FIRST_FILES):
            files.add(name)
            first.append(test)
    rest = [test for test in tests if test not in {*first}]
    return [first, rest] if rest else [first]


def run(
    mutants: Sequence[Mutant],
    bounds: Map,
    package: Package,
    processes: int,
    report: Callable[[Verdict], None],
) -> None:
    """Run mutants, so many at a time, and report each verdict as it is found."""
    waiting = list(reversed(mutants))
    trials: list[_Trial] = []
    killers: defaultdict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    try:
        while waiting or trials:
            while waiting and len(trials) < processes:
                mutant = waiting.pop()
                tests = bounds.choose(mutant, package)
                if tests:
                    stages = _stages(tests, killers[mutant.module, mutant.function])
                    trials.append(_Trial(mutant, stages, bounds))
                else:
                    report(Verdict(mutant, Outcome.UNTOUCHED))
            select.select([trial.pipe for trial in trials], [], [], 0.02)
            for trial in list(trials):
                verdict = trial.step()
                if verdict is not None:
                    trials.remove(trial)
                    if verdict.outcome.seen and verdict.test in bounds.tests:
                        place = verdict.mutant.module, verdict.mutant.function
                        killers[place][verdict.test] += 1
                    report(verdict)
    finally:
        for trial in trials:
            trial.abandon()
