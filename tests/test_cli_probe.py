# `snaptun-trio probe`: it says what the tests know of this machine by other ways, and goes on
# whatever a probe does.

from __future__ import annotations

import errno
import json
import sys
from typing import Any

import pytest
import trio

import snaptun_trio
from snaptun_trio import PacketTrain, SendBatchError, SendFailure
from snaptun_trio._cli import _probe_command
from snaptun_trio._cli._main import main
from snaptun_trio._cli._probe_command import PROBES, attempt

from . import ends
from .command_line import run_cli


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
    assert found["backend"] == snaptun_trio.backend
    told = f"The backend is {snaptun_trio.backend}: {snaptun_trio.backend_reason}."
    assert found["machine"][1] == told
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
        for what in (
            "ECN bits received",
            "time stamps of the kernel",
            "drops counted",
        ):
            assert said[what] is True
        assert said["the address it came to"] is said["one port for several processes"] is True
        assert said["open files and sockets"] > 0
    assert said["receive buffer, of 4,194,304 bytes"] > 0


def test_it_finds_what_is_switched_off() -> None:
    environment = {
        "SNAPTUN_TRIO_BACKEND": "portable",
        "SNAPTUN_TRIO_GSO": "0",
        "SNAPTUN_TRIO_GRO": "0",
    }
    found = probe(**environment)
    assert found["backend"] == "portable"
    assert found["machine"][1].startswith("The backend is portable: ")
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

    def refused() -> bool:
        raise OSError(5, "Five")

    probes = (
        ("good", lambda: "whatever", "no advice", 1),
        ("bad", lambda: None, "mend it", 1),
        ("strange", fails, "no advice", 1),
        ("refused", refused, "allow it", 1),
        ("small", lambda: 7, "more of it", 8),
        ("large", lambda: 8000, "no advice", 8),
    )
    monkeypatch.setattr(_probe_command, "PROBES", probes)
    assert main(["probe"]) == 0
    shown = capsys.readouterr().out
    rows = [" ".join(line.split()) for line in shown.splitlines()]
    for row in (
        "what found advice",
        "good yes",
        "bad no mend it",
        "strange ? could not be tried: it rains",
        "refused no allow it",
        "small 7 more of it",
        "large 8,000",
    ):
        assert row in rows
    assert "no advice" not in shown
    assert "SNAPTUN_TRIO_NOTHING=here" in shown
    assert "The backend is " in shown


def failing(error: Exception) -> dict[str, object]:
    def find() -> bool:
        raise error

    return attempt("it", find, "advice", 1)


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (RuntimeError(), "RuntimeError"),
        (ModuleNotFoundError("No module named 'resource'"), "No module named 'resource'"),
        (ExceptionGroup("two\nof them", [OSError()]), "two of them (1 sub-exception)"),
    ],
)
def test_a_probe_that_fails_in_a_way_of_its_own_says_why(error: Exception, says: str) -> None:
    told = {"what": "it", "found": None, "advice": f"could not be tried: {says}"}
    assert failing(error) == told


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol"),
        FileNotFoundError(errno.ENOENT, "No such file or directory", "unshare"),
        ValueError("this system cannot report it"),
        trio.TooSlowError(),
        SendBatchError([SendFailure(PacketTrain(b"x", 1, None), OSError(1, "No"))]),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_the_system_or_the_library_refuses_is_not_there(error: Exception) -> None:
    assert failing(error) == {"what": "it", "found": False, "advice": "advice"}


def test_nothing_arrives_and_the_next_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_probe_command, "WITHIN_SECONDS", 0.0)
    assert attempt(*PROBES[0])["found"] is False


def test_a_machine_without_ipv6_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    async def open_udp_socket(local: tuple[str, int]) -> trio.socket.SocketType:
        if ":" in local[0]:
            raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
        return await snaptun_trio.open_udp_socket(local)

    monkeypatch.setattr(_probe_command, "open_udp_socket", open_udp_socket)
    found = {row[0]: attempt(*row) for row in PROBES if "IPv" in row[0]}
    assert found["IPv6"]["found"] is False
    assert found["IPv6"]["advice"] == _probe_command.IPV6
    assert (found["IPv4"]["found"], found["IPv4"]["advice"]) == (True, "")
