# pytest as a function that is called in a forked child: which tests, and what it tells meanwhile.
#
# Everything random has a fixed seed, so that a test that passes without a fault fails only for one;
# and hypothesis does not look for the smallest example: that one fails is enough.

from __future__ import annotations

import gc
import importlib
import os
import sys
from typing import TYPE_CHECKING

import hypothesis
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

OPTIONS = [
    *("-q", "-x", "--tb=no", "--no-header", "--no-summary"),
    *("-p", "no:cacheprovider", "-p", "no:randomly"),
    # Modules that are loaded before the fork are not rewritten, and need not be.
    *("-W", "ignore::pytest.PytestAssertRewriteWarning"),
    *("-o", "addopts=--import-mode=importlib", "--hypothesis-seed=0"),
    "--ignore=tests/test_mutation.py",  # or it would run itself
]


class _NoShrinking:
    """Lets hypothesis stop at the first example that fails."""

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionstart(self) -> None:
        name = "mutation"
        phases = (hypothesis.Phase.explicit, hypothesis.Phase.generate)
        hypothesis.settings.register_profile(
            name, hypothesis.settings(), phases=phases, print_blob=False
        )
        hypothesis.settings.load_profile(name)


class _Chosen:
    """Runs the chosen tests in the order in which they were named, and tells of each."""

    def __init__(self, tests: Sequence[str], tell: Callable[[str], None]) -> None:
        self._order = {test: number for number, test in enumerate(tests)}
        self._tell = tell
        self.killer = ""

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = [item for item in items if item.nodeid in self._order]
        items.sort(key=lambda item: self._order[item.nodeid])
        if len(items) < len(self._order):
            self.killer = "the collection"  # a fault at import may change the parameters of a test

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._tell(f"start {nodeid}")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and not self.killer:
            self.killer = report.nodeid


def silence() -> None:
    """Let nothing of this process be seen any more."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)
    os.close(nowhere)


def first_failure(tests: Sequence[str], tell: Callable[[str], None]) -> str:
    """Run tests until one fails. Returns its name, or an empty string."""
    chosen = _Chosen(tests, tell)
    files = dict.fromkeys(test.partition("::")[0] for test in tests)
    code = pytest.main([*OPTIONS, *files], plugins=[_NoShrinking(), chosen])
    if code != pytest.ExitCode.OK:
        return chosen.killer or "the import"
    gc.collect()
    return chosen.killer


def collect_and_run(plugin: object, arguments: Sequence[str]) -> int:
    """Run pytest with a plugin that does what it likes with the tests."""
    return int(pytest.main([*OPTIONS, *arguments], plugins=[_NoShrinking(), plugin]))


def preload() -> None:
    """Import what every child needs, once; but neither the package nor its tests."""
    for name in ("_pytest.assertion.rewrite", "_pytest.runner", "pytest_trio", "trio.testing"):
        importlib.import_module(name)
    gc.collect()
    gc.freeze()
    assert "snaptun_trio" not in sys.modules
