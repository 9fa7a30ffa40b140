# `snaptun-trio demo`, from outside as a user runs it, and with faults put in: a forwarder that
# loses or changes something, a process that dies. What notices them is in `test_cli_traffic.py`.

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from snaptun_trio._cli import _compare_commands, _traffic
from snaptun_trio._cli._main import main
from snaptun_trio._version import __version__

from .command_line import run_cli
from .forwarding_wrongly import HOLE, script_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

NAME = "forwarder under test"


def use_forwarder(monkeypatch: pytest.MonkeyPatch, *command: str) -> None:
    """Have the demo run with this forwarder alone."""
    monkeypatch.setitem(_compare_commands.FORWARDERS, NAME, command)
    monkeypatch.setattr(_compare_commands, "DEMO", (NAME,))
    monkeypatch.setattr(_traffic, "LOST_AFTER_SECONDS", 3.0)


def figures(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """What was printed, which is JSON and nothing else."""
    shown = capsys.readouterr()
    assert shown.err == ""
    found: dict[str, Any] = json.loads(shown.out)
    return found


# --- the whole command --------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.core
@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"SNAPTUN_TRIO_GSO": "0"},
        {"SNAPTUN_TRIO_GRO": "0"},
        {"SNAPTUN_TRIO_BACKEND": "portable", "SNAPTUN_TRIO_GSO": "0", "SNAPTUN_TRIO_GRO": "0"},
    ],
    ids=["offload as the kernel has it", "without GSO", "without GRO", "the plainest system"],
)
def test_a_small_run_accounts_for_every_datagram(environment: Mapping[str, str]) -> None:
    # 3001 datagrams are 61 trains of 50.
    done = run_cli("demo", "--datagrams", "3001", "--json", environment=environment)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert found["adds_up"] is True
    assert found["version"] == __version__
    assert found["backend"] == environment.get("SNAPTUN_TRIO_BACKEND", found["backend"])
    assert [one["forwarder"] for one in found["results"]] == ["snaptun_trio pump", "trio.socket"]
    for one in found["results"]:
        assert one["shape"] == {"size": 1200, "train": 50}
        assert (one["sent"], one["damaged"]) == (3050, 0)
        dropped = one["messages_dropped"]
        assert dropped <= 3050 - one["delivered"] <= 50 * dropped
        assert one["cpu_microseconds"] > 0
        assert one["datagrams_per_second"] > 0


@pytest.mark.slow
def test_a_run_by_time_with_single_datagrams() -> None:
    options = ("--seconds", "0.5", "--train", "1", "--size", "100", "--json")
    done = run_cli("demo", *options)
    assert done.returncode == 0, done.stdout + done.stderr
    for one in json.loads(done.stdout)["results"]:
        assert one["shape"] == {"size": 100, "train": 1}
        assert one["sent"] == one["delivered"] + one["messages_dropped"] > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "size", "train"),
    [
        ("--size 1200 --train 1", 1200, 1),
        ("--size 1200 --train 1000", 1200, 54),
        ("--size 8 --train 130", 8, 130),
        ("--size 65507", 65_507, 1),
    ],
)
def test_as_many_go_at_once_as_fit(
    options: str, size: int, train: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", "--datagrams", "1", "--json", *options.split()]) == 0
    for one in figures(capsys)["results"]:
        assert (one["shape"], one["sent"]) == ({"size": size, "train": train}, train)


@pytest.mark.slow
def test_the_table_is_plain_text_where_there_is_no_terminal() -> None:
    done = run_cli("demo", "--datagrams", "500")
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    assert "\x1b" not in done.stdout
    lines = [line.split() for line in done.stdout.splitlines()]
    (heading,) = (line for line in lines if "datagrams/s" in line)
    assert " ".join(heading) == "CPU µs a datagram datagrams/s sent delivered", "in one line"
    assert [line[-2:] for line in lines if line[:1] == ["trio.socket"]] == [["500", "500"]]
    assert "Everything adds up: each was delivered unharmed or dropped by" in done.stdout


# --- faults put in ------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "missing", "damaged"),
    [
        ("[packet] * (n != 1499)", 1, 0),
        ("[packet if n != 1499 else packet[:-20] + bytes(20)]", 1, 1),
        ("[packet] * (1 + (n == 1499))", 0, 1),
    ],
    ids=["lost", "changed", "doubled"],
)
@pytest.mark.parametrize("as_json", [True, False], ids=["JSON", "table"])
def test_a_datagram_that_is_harmed_in_the_forwarder_exits_with_1(
    change: str,
    missing: int,
    damaged: int,
    as_json: bool,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    script = script_of(tmp_path, f"play_changing(lambda packet, n: {change})")
    use_forwarder(monkeypatch, script)
    assert main(["demo", "--datagrams", "2000", *["--json"] * as_json]) == 1
    if as_json:
        found = figures(capsys)
        assert found["adds_up"] is False
        (one,) = found["results"]
        assert (one["sent"], one["delivered"], one["damaged"]) == (2000, 2000 - missing, damaged)
    else:
        lines = capsys.readouterr().out.splitlines()
        assert lines[-2:] == [
            "IT DOES NOT ADD UP:",
            f"{NAME}, trains of 50 x 1200 bytes: {missing} of 2000 are missing, {damaged} came "
            "changed or once more, the kernel has dropped 0 messages",
        ]


@pytest.mark.slow
@pytest.mark.parametrize("sent", [0, 1, 7000])
def test_a_forwarder_that_dies_on_the_way_exits_with_1(
    sent: int, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code = f"play_changing(lambda packet, number: [packet] if number < {sent} else os._exit(3))"
    use_forwarder(monkeypatch, script_of(tmp_path, code))
    assert main(["demo", "--seconds", "3600"]) == 1
    assert capfd.readouterr() == ("", f"snaptun-trio: the {NAME} process: it has ended\n")


def test_a_forwarder_that_ends_early_exits_with_1(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    use_forwarder(monkeypatch, "-c", "pass")
    assert main(["demo", "--datagrams", "100"]) == 1
    assert capfd.readouterr() == ("", f"snaptun-trio: the {NAME} process: it has ended\n")


def test_a_forwarder_that_fails_is_quoted_without_a_traceback(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code = """
        async def fail(udp, target):
            raise OSError(5, "Five\\nlines")

        play(fail)
    """
    use_forwarder(monkeypatch, script_of(tmp_path, code))
    assert main(["demo", "--datagrams", "100"]) == 1
    assert capfd.readouterr() == ("", f"snaptun-trio: the {NAME} process: [Errno 5] Five lines\n")


@pytest.mark.slow
def test_a_forwarder_that_forwards_nothing_is_given_up(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    use_forwarder(monkeypatch, script_of(tmp_path, HOLE))
    assert main(["demo", "--datagrams", "50", "--json"]) == 1
    found = figures(capsys)
    (one,) = found["results"]
    assert (found["adds_up"], one["sent"], one["delivered"]) == (False, 50, 0)
