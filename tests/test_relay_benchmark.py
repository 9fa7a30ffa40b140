# The benchmark of relays counts what there is to count: its clients and its far end around a relay
# of a few lines, and the CPU time of a process with children.
#
# Nothing here is about how fast anything is.

from __future__ import annotations

import select
import socket
import sys
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from .benchmarks._sittings import Effort
from .benchmarks._traffic import open_socket
from .benchmarks.relays import __main__ as command
from .benchmarks.relays._contenders import CONTENDERS, WITH_A_PROTOCOL, Contender, from_option
from .benchmarks.relays._load import Plan, build, open_ends
from .benchmarks.relays._measuring import measure, wait_until_ready
from .benchmarks.relays._rows import PACED, Row, Shape
from .benchmarks.relays._running import running

if TYPE_CHECKING:
    import ctypes
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the load is made for Linux")

PATIENCE = 2.0  # seconds without an answer; noise must not look like a loss
BURNT = 0.1  # seconds of CPU time

BURNING = """
import os, pathlib, sys, time
def burn():
    while time.process_time() < float(sys.argv[1]):
        pass
if not os.fork():
    burn()
    os._exit(0)
os.wait()
if not os.fork():
    burn()
    pathlib.Path(sys.argv[2]).touch()
time.sleep(600)
"""


@pytest.fixture(scope="module")
def library() -> ctypes.CDLL:
    try:
        return build()
    except ImportError as error:
        pytest.skip(str(error))


class FewLines:
    """A relay with a socket for each client. `passes` says of each question whether it goes on,
    `answered` which client gets an answer."""

    def __init__(self, target: int, passes: Callable[[int], bool]) -> None:
        self._target, self._passes = ("127.0.0.1", target), passes
        self._front = open_socket(socket.AF_INET)
        self._links: dict[tuple[str, int], socket.socket] = {}
        self._asked = 0
        self._ended = threading.Event()
        self.mixes_up = False
        self.port: int = self._front.getsockname()[1]

    def run(self) -> None:
        """Relay until `end`."""
        while not self._ended.is_set():
            sockets = [self._front, *self._links.values()]
            for sock in select.select(sockets, [], [], 0.05)[0]:
                data, source = sock.recvfrom(65_536)
                if sock is self._front:
                    self._ask(data, source)
                else:
                    self._answer(data, sock)
        for sock in (self._front, *self._links.values()):
            sock.close()

    def end(self) -> None:
        """Let `run` return."""
        self._ended.set()

    def _ask(self, data: bytes, client: tuple[str, int]) -> None:
        if client not in self._links:
            self._links[client] = open_socket(socket.AF_INET)
            self._links[client].connect(self._target)
        self._asked += 1
        if self._passes(self._asked):
            self._links[client].send(data)

    def _answer(self, data: bytes, link: socket.socket) -> None:
        for client, its_link in self._links.items():
            if its_link is link or self.mixes_up:
                self._front.sendto(data, client)
                return


@contextmanager
def few_lines(target: int, passes: Callable[[int], bool] = lambda _: True) -> Iterator[FewLines]:
    """In a thread."""
    relay = FewLines(target, passes)
    thread = threading.Thread(target=relay.run)
    thread.start()
    try:
        yield relay
    finally:
        relay.end()
        thread.join()


def test_each_datagram_is_counted_at_the_far_end_and_when_it_is_back(
    library: ctypes.CDLL,
) -> None:
    with open_ends(library) as ends, few_lines(ends.far_port) as relay:
        plan = Plan(clients=5, window=16, most_trains=200, checks=True, patience=PATIENCE)
        counts = ends.run(relay.port, 1, plan)
    assert (counts.sent, counts.echoed, counts.returned, counts.wrong) == (200, 200, 200, 0)
    assert counts.relayed == 400
    assert counts.loss == 0
    assert counts.window == 16


@pytest.mark.needs_gso
@pytest.mark.needs_gro
def test_paced_trains_are_counted_in_datagrams(library: ctypes.CDLL) -> None:
    with open_ends(library) as ends, few_lines(ends.far_port) as relay:
        plan = Plan(clients=3, trains_per_ms=0.5, most_trains=12, checks=True, patience=PATIENCE)
        counts = ends.run(relay.port, 10, plan)
    assert (counts.sent, counts.echoed, counts.returned, counts.wrong) == (120, 120, 120, 0)
    assert counts.window == 0


@pytest.mark.slow
def test_a_relay_that_drops_every_tenth_loses_a_tenth(library: ctypes.CDLL) -> None:
    with (
        open_ends(library) as ends,
        few_lines(ends.far_port, lambda number: number % 10 != 0) as relay,
    ):
        plan = Plan(clients=2, window=50, most_trains=200, checks=True, patience=PATIENCE)
        counts = ends.run(relay.port, 1, plan)
    assert (counts.sent, counts.echoed, counts.returned, counts.wrong) == (200, 180, 180, 0)
    assert counts.loss == pytest.approx(0.1)
    assert counts.relayed == 360


def test_answers_for_another_client_are_noticed(library: ctypes.CDLL) -> None:
    with open_ends(library) as ends, few_lines(ends.far_port) as relay:
        relay.mixes_up = True
        counts = ends.run(
            relay.port, 1, Plan(clients=4, window=1, most_trains=40, patience=PATIENCE)
        )
    assert counts.returned == 40
    assert counts.wrong == 30


@pytest.mark.slow
def test_the_cpu_time_of_children_counts_alive_and_ended(tmp_path: Path) -> None:
    burnt = tmp_path / "burnt"

    def burning(listen: str, target: str, directory: Path) -> Sequence[str]:
        return [sys.executable, "-c", BURNING, str(BURNT), str(burnt)]

    with running(Contender("burning", burning, lambda: None), 1) as relay:
        while not burnt.exists():
            relay.check_alive()
            time.sleep(0.01)
        assert relay.cpu_ns() >= 2 * BURNT * 1e9 * 0.9  # of those that ended in ticks


def test_a_relay_of_the_users_own_is_called_as_he_said(tmp_path: Path) -> None:
    contender = from_option("mine=run 'my relay' --from={listen} {target} {other}")
    assert contender.name == "mine"
    line = contender.command("127.0.0.1:1", "127.0.0.1:2", tmp_path)
    assert line == ["run", "my relay", "--from=127.0.0.1:1", "127.0.0.1:2", "{other}"]


def test_why_a_relay_cannot_be_measured_is_said_and_ends_nothing_else(
    library: ctypes.CDLL, tmp_path: Path
) -> None:
    ending = f"{sys.executable} -c 'import sys; print(1); sys.exit(\"not today\")'"
    contenders = [from_option(f"absent={tmp_path}/absent"), from_option(f"ending={ending}")]
    row = Row(PACED, Shape(1, 1))
    with open_ends(library) as ends:
        (measured,) = measure(ends, contenders, [row], Effort(1, 0.01), lambda _: None)
    assert "No such file" in measured.cannot["absent"]
    assert measured.cannot["ending"] == "it ended with 1: not today"
    assert not measured.sittings


@pytest.mark.parametrize("contender", WITH_A_PROTOCOL, ids=lambda contender: contender.name)
def test_a_relay_with_a_protocol_gives_back_what_was_sent(
    library: ctypes.CDLL, contender: Contender
) -> None:
    reason = contender.missing()
    if reason is not None:
        pytest.skip(reason)
    with open_ends(library) as ends, running(contender, ends.far_port) as relay:
        wait_until_ready(ends, relay)
        plan = Plan(clients=3, window=4, most_trains=60, checks=True, patience=PATIENCE)
        counts = ends.run(relay.port, 1, plan)
        relay.check_alive()
    assert (counts.echoed, counts.returned, counts.wrong) == (60, 60, 0)


@pytest.mark.slow
def test_every_contender_runs_or_says_what_is_missing(
    library: ctypes.CDLL, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "table.inc"
    options = ["--select=paced/8/*", "--rounds=1", "--ms=20", f"--rst={table}"]
    command.main(options)
    said = capsys.readouterr().out
    written = table.read_text(encoding="utf-8")
    for contender in CONTENDERS:
        name = "ours" if contender.name == "snaptun_trio" else contender.name
        assert f'"{name}"' in written or f"{contender.name} is left out: " in said
