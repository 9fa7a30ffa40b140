# SNAPTUN_TRIO_GSO and SNAPTUN_TRIO_GRO: 0 switches an offload off, and no other word passes for it.

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from snaptun_trio import UdpBatchSender
from snaptun_trio._kernel._sockets import switched_off

if TYPE_CHECKING:
    from . import ends


@pytest.mark.parametrize("offload", ["GSO", "GRO"])
@pytest.mark.parametrize("value", ["off", "false", "no", "00", "2", " 0"])
def test_an_unknown_word_about_an_offload_is_told_by_the_import(offload: str, value: str) -> None:
    name = f"SNAPTUN_TRIO_{offload}"
    told = import_with({name: value})
    assert told.returncode == 1
    last = told.stderr.splitlines()[-1]
    assert last == f"ImportError: {name}={value}: it is 0, which is off, 1 or empty"


@pytest.mark.parametrize("value", ["", "0", "1"])
def test_a_known_word_about_an_offload_is_none_to_the_import(value: str) -> None:
    told = import_with({"SNAPTUN_TRIO_GSO": value, "SNAPTUN_TRIO_GRO": value})
    assert (told.returncode, told.stderr) == (0, "")


def import_with(environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """What it says to be imported under such an environment."""
    return subprocess.run(
        [sys.executable, "-P", "-c", "import snaptun_trio"],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(("value", "off"), [("", False), ("0", True), ("1", False)])
def test_only_0_switches_an_offload_off(
    monkeypatch: pytest.MonkeyPatch, value: str, off: bool
) -> None:
    monkeypatch.setenv("SNAPTUN_TRIO_GSO", value)
    monkeypatch.delenv("SNAPTUN_TRIO_GRO", raising=False)
    assert switched_off("GSO") == off
    assert not switched_off("GRO")


def test_a_word_that_came_later_is_told_by_what_is_made(
    monkeypatch: pytest.MonkeyPatch, udp: ends.MakeSocket
) -> None:
    monkeypatch.setenv("SNAPTUN_TRIO_GSO", "off")
    with pytest.raises(ImportError, match="SNAPTUN_TRIO_GSO=off"):
        UdpBatchSender(udp())
