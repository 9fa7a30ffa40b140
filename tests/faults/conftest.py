# What the fault suite adds to pytest: tests in a process and a network of their own, and the
# options of the long forms.
#
#     @pytest.mark.own_process    the body runs in a forked child
#     @pytest.mark.own_network    the same, inside a fresh user and network namespace
#     @pytest.mark.soak           a long form: left out unless asked for with -m soak
#
# Fixtures are set up in the parent: a test in a network of its own makes its sockets itself.

from __future__ import annotations

import contextlib

import pytest

from . import netns, own_process


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("faults", "the fault suite")
    group.addoption("--datagrams", type=int, help="how many datagrams a soak sends")
    group.addoption("--rounds", type=int, help="how many cancellations or inputs a soak makes")
    group.addoption("--inputs", type=int, help="how many messages the two readings compare")
    group.addoption("--minutes", type=int, help="how long the soak of all faults runs")
    group.addoption("--seed", type=int, help="the seed of everything that is random")


def pytest_configure(config: pytest.Config) -> None:
    for marker in (
        "own_process: runs in a forked child",
        "own_network: runs in a forked child, in a user and network namespace of its own",
        "soak: a long form of a fault test, run with -m soak",
    ):
        config.addinivalue_line("markers", marker)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if "soak" in config.getoption("markexpr"):
        return
    soaks = [item for item in items if item.get_closest_marker("soak")]
    if soaks:
        config.hook.pytest_deselected(items=soaks)
        items[:] = [item for item in items if item not in soaks]


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    network = pyfuncitem.get_closest_marker("own_network") is not None
    process = network or pyfuncitem.get_closest_marker("own_process") is not None
    if not process or own_process.inside_a_child():
        return None  # pytest calls the function itself.
    if network and (problem := netns.why_no_network()):
        pytest.skip(problem)

    def body() -> None:
        if network:
            netns.enter_new_network()
        pyfuncitem.runtest()

    soak = pyfuncitem.get_closest_marker("soak") is not None
    own_process.run_in_child(
        body,
        describe=lambda info: str(pyfuncitem.repr_failure(info)),
        seconds=86_400.0 if soak else own_process.HANG_GUARD,
    )
    return True


def _option(config: pytest.Config, name: str, default: int) -> int:
    # A run that does not start in this directory never registers the options.
    with contextlib.suppress(ValueError):
        value = config.getoption(name)
        if value is not None:
            return int(value)
    return default


@pytest.fixture
def seed(pytestconfig: pytest.Config) -> int:
    """The seed of everything that is random in a test."""
    return _option(pytestconfig, "seed", 1)


@pytest.fixture
def rounds(pytestconfig: pytest.Config) -> int:
    """How many cancellations or inputs a soak makes."""
    return _option(pytestconfig, "rounds", 1_000_000)


@pytest.fixture
def inputs(pytestconfig: pytest.Config) -> int:
    """How many messages the two readings of a soak compare."""
    return _option(pytestconfig, "inputs", 10_000_000)


@pytest.fixture
def datagrams(pytestconfig: pytest.Config) -> int:
    """How many datagrams a soak sends."""
    return _option(pytestconfig, "datagrams", 10_000_000)


@pytest.fixture
def minutes(pytestconfig: pytest.Config) -> int:
    """How long the soak of all faults runs."""
    return _option(pytestconfig, "minutes", 60)
