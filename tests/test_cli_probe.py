# `snaptun-trio probe`: it says what the tests know of this machine by other ways, and goes on
# whatever a probe does.

from __future__ import annotations

import errno
import json
import sys
from typing import TYPE_CHECKING, Any

import pytest

import snaptun_trio
from snaptun_trio._cli import _probe_command
from snaptun_trio._cli._main import main
from snaptun_trio._cli._probe_command import PROBES, attempt

from . import ends
from .command_line import run_cli

if TYPE_CHECKING:
    import trio


def probe(**environment: str) -> dict[str, Any]:
    done = run_cli("probe", "--json", environment=environment)
    assert (done.returncode, done.stderr) == (0, "")
    found: dict[str, Any] = json.loads(done.stdout)
    assert [one["what"] for one in found["findings"]] == [what for what, *_ in PROBES]
    return found


def answers(found: dict[str, Any]) -> dict[str, Any]:
    return {one["what"]: one["found"] for one in found["findings"]}


def test_it_finds_what_is_there() -> None:
    found = probe()
    assert (found["backend"], found["backend_reason"]) == (
        snaptun_trio.backend,
        snaptun_trio.backend_reason,
    )
    said = answers(found)
    assert said["IPv4"] is True
    for what, option in (
        ("trains cut by the kernel (GSO)", ends.UDP_SEGMENT),
        ("trains received whole (GRO)", ends.UDP_GRO),
    ):
        if ends.kernel_knows(option):
            assert said[what] is True
    if ends.kernel_knows(ends.UDP_SEGMENT):
        assert said["datagrams in the longest train"] >= 64
    if sys.platform == "linux":
        for what in ("ECN bits received", "time stamps of the kernel", "drops told"):
            assert said[what] is True
    assert said["receive buffer, bytes of 4 MiB"] > 0


def test_it_finds_what_is_switched_off() -> None:
    environment = {
        "SNAPTUN_TRIO_BACKEND": "portable",
        "SNAPTUN_TRIO_GSO": "0",
        "SNAPTUN_TRIO_GRO": "0",
    }
    found = probe(**environment)
    assert found["backend"] == "portable"
    assert set(found["environment"]) >= {f"{name}={value}" for name, value in environment.items()}
    said = answers(found)
    assert said["trains cut by the kernel (GSO)"] is False
    assert said["trains received whole (GRO)"] is False
    assert said["several datagrams sent in one call"] is False
    assert said["several datagrams received in one call"] is False
    assert said["IPv4"] is True
    for one in found["findings"]:
        if one["found"] is False:
            assert one["advice"]


@pytest.mark.needs_gso
@pytest.mark.needs_gro
def test_what_is_switched_off_for_sending_is_not_so_for_receiving() -> None:
    said = answers(probe(SNAPTUN_TRIO_GSO="0"))
    assert said["trains cut by the kernel (GSO)"] is False
    assert said["trains received whole (GRO)"] is True


def test_the_table_says_the_same_in_words(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("SNAPTUN_TRIO_NOTHING", "here")

    def fails() -> bool:
        raise RuntimeError("it\nrains")

    probes = (
        ("good", lambda: True, "no advice", 1),
        ("bad", lambda: False, "mend it", 1),
        ("small", lambda: 7, "more of it", 8),
        ("large", lambda: 8, "no advice", 8),
        ("strange", fails, "no advice", 1),
    )
    monkeypatch.setattr(_probe_command, "PROBES", probes)
    assert main(["probe"]) == 0
    shown = capsys.readouterr().out
    rows = [" ".join(line.split()) for line in shown.splitlines()]
    for row in (
        "good yes",
        "bad no mend it",
        "small 7 more of it",
        "large 8",
        "strange ? could not be tried: it rains",
    ):
        assert row in rows
    assert "no advice" not in shown
    assert "SNAPTUN_TRIO_NOTHING=here" in shown
    assert "The backend is " in shown


@pytest.mark.parametrize(
    ("error", "says"), [(RuntimeError(), "RuntimeError"), (OSError(5, "Five"), "[Errno 5] Five")]
)
def test_a_probe_that_fails_says_why(error: Exception, says: str) -> None:
    def find() -> bool:
        raise error

    told = {"what": "it", "found": None, "advice": f"could not be tried: {says}"}
    assert attempt("it", find, "advice", 1) == told


def test_a_machine_without_ipv6_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    async def open_udp_socket(local: tuple[str, int]) -> trio.socket.SocketType:
        if ":" in local[0]:
            raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
        return await snaptun_trio.open_udp_socket(local)

    monkeypatch.setattr(_probe_command, "open_udp_socket", open_udp_socket)
    found = {row[0]: attempt(*row) for row in PROBES if "IPv" in row[0]}
    assert found["IPv6"]["found"] is False
    assert found["IPv6"]["advice"]
    assert found["IPv4 on a socket of IPv6"]["found"] is False
    assert found["IPv4"]["found"] is True
