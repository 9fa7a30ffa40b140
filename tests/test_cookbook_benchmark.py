# The benchmark of the cookbook's programs counts what there is to count: every contender does what
# ours does, and what is lost, or cannot be measured, is said.
#
# Nothing here is about how fast anything is.

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from .benchmarks._sittings import Effort
from .benchmarks.cookbook import __main__ as command, _loads, _measuring
from .benchmarks.cookbook._measuring import measure_row
from .benchmarks.cookbook._rows import OURS, ROWS, Row
from .real_software import needs

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="it reads Linux's clocks"),
]

LITTLE = Effort(1, 0.02)


def nothing_lost(row: Row) -> None:
    measured = measure_row(row, LITTLE, None)
    assert not measured.cannot
    assert list(measured.sittings) == list(row.contenders())
    for (sitting,) in measured.sittings.values():
        assert sitting.done == sitting.wanted > 0
        assert sitting.cpu_ns > 0
        assert (sitting.rate is not None) == row.asks


@pytest.mark.parametrize("row", [row for row in ROWS if not row.asks], ids=lambda row: row.id)
def test_every_contender_does_all_of_it(row: Row, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_loads, "PATIENCE", 10.0)  # noise must not look like a loss
    nothing_lost(row)


@needs("dnsperf", "dnsmasq")
@pytest.mark.parametrize("row", [row for row in ROWS if row.asks], ids=lambda row: row.id)
def test_every_contender_answers_all_of_it(row: Row, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_loads, "DNSPERF_TIMEOUT", "30")
    nothing_lost(row)


def test_what_a_program_loses_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def some_are_no_syslog(number: int) -> bytes:
        return _loads.syslog(number) if number % 4 else b"<30>Nov 26 07:00:00 host-7 worker: done"

    @contextmanager
    def collector(row: Row) -> Iterator[_loads.Load]:
        yield _loads.Written(
            row, "output", some_are_no_syslog, lambda new: new.count(b" done in 12 ms\n")
        )

    monkeypatch.setattr(_loads, "PATIENCE", 2.0)
    monkeypatch.setattr(_loads, "collector", collector)
    table = tmp_path / "table.inc"
    options = ["--select=syslog_collector/32", "--rounds=1", "--ms=20", "--only", OURS]
    assert command.main([*options, f"--rst={table}"]) == 0
    assert "25.0% lost" in table.read_text(encoding="utf-8")
    assert "25.0% lost" in capsys.readouterr().out


def test_what_does_not_start_is_named_and_ends_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = _measuring.command

    def command_of(row: Row, name: str) -> list[str]:
        return ["-c", "import sys; sys.exit('not today')"] if name == OURS else whole(row, name)

    monkeypatch.setattr(_measuring, "command", command_of)
    measured = measure_row(Row("syslog_collector", 32), LITTLE, [OURS, "asyncio"])
    assert measured.cannot == {OURS: "it ended with 1: not today"}
    assert list(measured.sittings) == ["asyncio"]


def test_a_port_that_was_taken_meanwhile_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = _measuring.command
    starts: list[str] = []

    def command_of(row: Row, name: str) -> list[str]:
        starts.append(name)
        taken = "raise OSError(98, 'Address already in use')"
        return ["-c", taken] if len(starts) < 3 else whole(row, name)

    monkeypatch.setattr(_measuring, "command", command_of)
    measured = measure_row(Row("syslog_collector", 32), LITTLE, [OURS])
    assert not measured.cannot
    assert len(starts) == 3
