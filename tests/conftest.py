# What all tests share: the two backends, sockets that close themselves, a bound for a test that
# hangs, and the rule that a core test may not be skipped where SNAPTUN_TRIO_REQUIRE_CORE=1 says so.

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sys
from typing import TYPE_CHECKING

import hypothesis
import pytest

from . import ends, groups, hanging, scripted, system_calls

if TYPE_CHECKING:
    import socket
    from collections.abc import Generator, Iterator

# No deadline: another process on the machine must not make a test fail. No database: a run leaves
# nothing behind, and a failure prints what it takes to see it again.
hypothesis.settings.register_profile(
    "snaptun_trio",
    deadline=None,
    database=None,
    print_blob=True,
    suppress_health_check=[
        hypothesis.HealthCheck.too_slow,
        hypothesis.HealthCheck.function_scoped_fixture,
    ],
)
hypothesis.settings.register_profile(
    "quick", hypothesis.settings.get_profile("snaptun_trio"), max_examples=20
)
hypothesis.settings.load_profile("snaptun_trio")

# A shell has its background jobs ignore SIGINT, and tests that raise it would wait for ever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

_REQUIRE_CORE = "SNAPTUN_TRIO_REQUIRE_CORE"


def pytest_itemcollected(item: pytest.Item) -> None:
    if isinstance(item, pytest.Function) and not item.get_closest_marker("soak"):
        item.obj = hanging.guarded(item.obj)


def pytest_collection_finish() -> None:
    # What is there now stays to the end: the tests' own code and pytest's. A test that has its
    # rubbish collected should not wait 70 ms each time for all that to be looked at.
    gc.collect()
    gc.freeze()


def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker, option in (("needs_gso", ends.UDP_SEGMENT), ("needs_gro", ends.UDP_GRO)):
        if item.get_closest_marker(marker) and not ends.kernel_knows(option):
            pytest.skip(
                f"this kernel has no {'UDP_SEGMENT' if marker == 'needs_gso' else 'UDP_GRO'}"
            )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    required = os.environ.get(_REQUIRE_CORE) == "1" and item.get_closest_marker("core")
    if required and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"a core test was skipped, and {_REQUIRE_CORE} is set: {report.longrepr}"
    return report


@pytest.fixture(autouse=True)
def no_switches(monkeypatch: pytest.MonkeyPatch) -> None:
    """An operator's switches in the environment concern the operator's programs."""
    for name in ("GSO", "GRO", "BACKEND"):
        monkeypatch.delenv(f"SNAPTUN_TRIO_{name}", raising=False)


@pytest.fixture(params=["linux", "portable"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run the test with each backend: whatever is made from here on uses it."""
    name: str = request.param
    if name == "linux":
        if sys.platform != "linux":
            pytest.skip("recvmmsg and sendmmsg with offloads are Linux's")
        system_calls.require_extension()
    monkeypatch.setenv("SNAPTUN_TRIO_BACKEND", name)
    return name


@pytest.fixture
def linux_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    """What only recvmmsg and sendmmsg can show."""
    if sys.platform != "linux":
        pytest.skip("recvmmsg and sendmmsg with offloads are Linux's")
    system_calls.require_extension()
    monkeypatch.setenv("SNAPTUN_TRIO_BACKEND", "linux")


@pytest.fixture
def nothing_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of any size stay in the slab that they arrived in."""
    system_calls.copy_up_to(monkeypatch, -1)


@pytest.fixture
def udp() -> Iterator[ends.MakeSocket]:
    """Makes non-blocking sockets that are bound to a port of the kernel's choice."""
    with contextlib.ExitStack() as stack:

        def make(host: str = "127.0.0.1", **options: int) -> socket.socket:
            return stack.enter_context(ends.bound_socket(host, **options))

        yield make


@pytest.fixture
def pair(backend: str, udp: ends.MakeSocket) -> Iterator[ends.Pair]:
    """A sender and a receiver of it, on sockets of their own."""
    with ends.make_pair(udp(), udp()) as made:
        yield made


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> scripted.ScriptedKernel:
    """A scripted kernel for whatever is made from here on: nothing comes, and all sends go."""
    return scripted.install(monkeypatch)


@pytest.fixture(params=groups.POLLERS)
def poller(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run the test with each poller: whatever group is made from here on uses it."""
    name: str = request.param
    groups.use_poller(monkeypatch, name)
    return name
