# The benchmark of tunnels: both carry, what is missing is named, and its table says what it has.
#
# Nothing here is about how fast anything is.

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from .benchmarks.tunnels import __main__ as command
from .benchmarks.tunnels._contenders import OURS, WIREGUARD, why_no_wireguard

ROOT = Path(__file__).parent.parent


def test_table_compares_medians() -> None:
    def sittings(mbit: float, cpu: float) -> list[command.Sitting]:
        return [command.Sitting(mbit * n, cpu * n, 2 * cpu * n) for n in (1, 2, 30)]

    results = {OURS: sittings(100, 1.5), WIREGUARD: sittings(50, 3)}
    assert command.rows(results) == [
        [OURS, "200", "3", "6", "9"],
        [WIREGUARD, "100 (0.50x)", "6 (2.00x)", "12 (2.00x)", "18 (2.00x)"],
    ]
    table = command.as_rst({"system": "this"}, {OURS: results[OURS]}, {WIREGUARD: "not here"})
    assert '   "tunnel.py","200","3","6","9"\n' in table
    assert f"{WIREGUARD} was not measured: not here.\n" in table


def test_what_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert why_no_wireguard() == "it is not installed"
    assert command.why_nothing() is not None


@pytest.mark.slow
def test_each_tunnel_that_is_there_is_measured(tmp_path: Path) -> None:
    if reason := command.why_nothing():
        pytest.skip(reason)
    out, rst = tmp_path / "json", tmp_path / "rst"
    run = [sys.executable, "-m", "tests.benchmarks.tunnels", "--rounds", "1", "--seconds", "1"]
    run += ["--json", str(out), "--rst", str(rst)]
    done = subprocess.run(run, cwd=ROOT, env=os.environ, capture_output=True, text=True, check=True)
    told = json.loads(out.read_text(encoding="utf-8"))
    measured = [OURS, *([] if why_no_wireguard() else [WIREGUARD])]
    assert list(told["tunnels"]) == measured, done.stdout
    for sittings in told["tunnels"].values():
        assert len(sittings) == 1
        assert min(sittings[0].values()) > 0
    text = rst.read_text(encoding="utf-8")
    assert text.count('\n   "') == 1 + len(measured)
    assert text.count("\n   :") == 2
