# How a command ends: its exit code, and one line for what went wrong.

from __future__ import annotations

import errno
import importlib.abc
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from snaptun_trio import __main__
from snaptun_trio._cli import _main
from snaptun_trio._cli._main import main
from snaptun_trio._cli._terminal import CommandError, add_command
from snaptun_trio._version import __version__

from .command_line import (
    EXTRA,
    HANG_GUARD_SECONDS,
    environment_for,
    hide,
    linux_only,
    run_cli,
)
from .relaying import children_of

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from snaptun_trio._cli._terminal import Commands

    from .ends import MakeSocket

    RunsAs = Callable[[Callable[[], int]], None]


@pytest.fixture
def runs_as(monkeypatch: pytest.MonkeyPatch) -> RunsAs:
    """Put in a command, "play", that does this."""

    def put_in(act: Callable[[], int]) -> None:
        class Play:
            @staticmethod
            def add_parser(commands: Commands) -> None:
                def run(_options: argparse.Namespace) -> int:
                    return act()

                add_command(commands, "play", run, "play", "Plays.", "--json")

        monkeypatch.setattr(_main, "COMMANDS", (Play,))

    return put_in


def raising(error: BaseException) -> Callable[[], int]:
    def act() -> int:
        raise error

    return act


def test_version() -> None:
    done = run_cli("--version")
    assert (done.returncode, done.stdout) == (0, f"snaptun_trio {__version__}\n")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (CommandError("it is raining"), "it is raining"),
        (CommandError("it is\n raining"), "it is raining"),
        (
            OSError(errno.EADDRINUSE, "Address already in use: local=('127.0.0.1', 53)"),
            "address already in use: 127.0.0.1:53",
        ),
        (FileNotFoundError(errno.ENOENT, "No such file", "x.svg"), "no such file: x.svg"),
        (OSError(), "OSError"),
        (ExceptionGroup("two", [CommandError("one"), OSError(5, "Five")]), "one; five"),
        (ExceptionGroup("same", [OSError(5, "Five"), OSError(5, "Five")]), "five"),
        (ExceptionGroup("", [ExceptionGroup("", [CommandError("deep")])]), "deep"),
    ],
)
def test_what_went_wrong_is_one_line_and_exits_with_1(
    error: Exception, line: str, runs_as: RunsAs, capsys: pytest.CaptureFixture[str]
) -> None:
    runs_as(raising(error))
    assert main(["play"]) == 1
    assert capsys.readouterr() == ("", f"snaptun-trio: {line}\n")


@pytest.mark.parametrize(
    "error",
    [ValueError("a bug"), ExceptionGroup("", [CommandError("one"), ValueError("a bug")])],
    ids=["alone", "in a group"],
)
def test_a_bug_is_not_hidden(error: Exception, runs_as: RunsAs) -> None:
    runs_as(raising(error))
    with pytest.raises(type(error)):
        main(["play"])


@pytest.mark.parametrize(
    "error",
    [KeyboardInterrupt(), BaseExceptionGroup("", [KeyboardInterrupt(), OSError(5, "Five")])],
    ids=["alone", "in a group"],
)
def test_ctrl_c_exits_with_130_and_says_nothing(
    error: BaseException, runs_as: RunsAs, capsys: pytest.CaptureFixture[str]
) -> None:
    runs_as(raising(error))
    assert main(["play"]) == 130
    assert capsys.readouterr() == ("", "")


def test_ctrl_c_while_the_commands_are_imported_says_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Impatient(importlib.abc.MetaPathFinder):
        def find_spec(self, name: str, *_: object) -> None:
            if name == _main.__name__:
                raise KeyboardInterrupt

    monkeypatch.delitem(sys.modules, _main.__name__)
    monkeypatch.setattr(sys, "meta_path", [Impatient(), *sys.meta_path])
    assert __main__.main() == 130
    assert capsys.readouterr() == ("", "")


def test_sigterm_is_taken_as_ctrl_c_and_given_back(runs_as: RunsAs) -> None:
    before = signal.getsignal(signal.SIGTERM)
    ctrl_c = signal.signal(signal.SIGINT, signal.default_int_handler)

    def act() -> int:
        signal.raise_signal(signal.SIGTERM)
        return 0

    try:
        runs_as(act)
        assert main(["play"]) == 143
    finally:
        signal.signal(signal.SIGINT, ctrl_c)
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("arguments", ["probe", "relay --help", "--help", "--version", "", "x"])
@pytest.mark.parametrize("module", EXTRA)
def test_without_the_extra_it_says_how_to_install_it(
    module: str, arguments: str, tmp_path: Path
) -> None:
    done = run_cli(*arguments.split(), path=hide(tmp_path, module))
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"snaptun-trio: it needs {module}, which is not there: ")
    assert "pip install '.[cli]'" in line


def test_what_else_is_missing_is_not_taken_for_the_extra(tmp_path: Path) -> None:
    done = run_cli("--version", path=hide(tmp_path, "attrs"))
    assert done.returncode == 1
    assert done.stderr.endswith("ModuleNotFoundError: hidden by a test\n")


@pytest.mark.parametrize(
    "arguments", [["probe"], ["probe", "--json"], ["--help"], ["bench", "--help"]], ids=" ".join
)
def test_a_reader_that_goes_away_is_no_error(arguments: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "snaptun_trio", *arguments],
            env=environment_for(None, {}),
            stdout=writing,
            stderr=subprocess.PIPE,
            timeout=HANG_GUARD_SECONDS,
            check=False,
        )
    finally:
        os.close(writing)
    assert done.stderr == b""
    # Where Python does not buffer, it is argparse that meets it, and takes it for nothing.
    assert done.returncode == 1 or "--help" in arguments


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
@pytest.mark.parametrize("arguments", ["probe", "probe --json"])
def test_an_output_that_takes_no_more_is_said(arguments: str) -> None:
    done = run_to(">/dev/full", arguments)
    assert (done.returncode, done.stderr) == (1, "snaptun-trio: no space left on device\n")


@pytest.mark.skipif(sys.platform == "win32", reason="it takes a shell")
@pytest.mark.parametrize("arguments", ["probe", "probe --json", "--version"])
def test_an_output_that_is_closed_is_one_that_nobody_reads(arguments: str) -> None:
    done = run_to(">&-", arguments)
    assert (done.returncode, done.stderr) == (0, "")


def run_to(where: str, arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command, with its output redirected by a shell."""
    return subprocess.run(
        ["sh", "-c", f'exec "$0" -P -m snaptun_trio {arguments} {where}', sys.executable],
        env=environment_for(None, {"PYTHONUNBUFFERED": ""}),
        capture_output=True,
        text=True,
        timeout=HANG_GUARD_SECONDS,
        check=False,
    )


@pytest.mark.slow
def test_an_output_that_knows_no_greek_loses_letters_and_no_lines() -> None:
    options = ("--datagrams", "100")
    done = run_cli("demo", *options, environment={"PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0, done.stderr
    assert "CPU ?s a datagram" in done.stdout
    assert "Everything adds up" in done.stdout


def test_json_is_all_there_is_on_standard_output() -> None:
    done = run_cli("probe", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["version"] == __version__
    assert done.stderr == ""


@linux_only
@pytest.mark.parametrize(
    "arguments",
    ["relay 127.0.0.1:PORT 127.0.0.1:9", "relay 127.0.0.1:0 127.0.0.1:9 --metrics 127.0.0.1:PORT"],
)
def test_an_address_is_told_as_it_was_given(arguments: str) -> None:
    kinds = (socket.SOCK_STREAM, socket.SOCK_DGRAM)
    with socket.socket(socket.AF_INET, kinds["--metrics" not in arguments]) as taken:
        taken.bind(("127.0.0.1", 0))
        if "--metrics" in arguments:
            taken.listen()
        port = taken.getsockname()[1]
        done = run_cli(*arguments.replace("PORT", f"{port}").split())
    where = "--metrics " * ("--metrics" in arguments) + f"127.0.0.1:{port}"
    line = f"snaptun-trio: address already in use: {where}\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", line)


@linux_only
def test_a_relay_to_itself_is_told_in_a_line(udp: MakeSocket) -> None:
    with udp("127.9.8.7") as free:  # where nobody else takes a port meanwhile
        where = "{}:{}".format(*free.getsockname())
    done = run_cli("relay", where, where)
    line = f"snaptun-trio: a target is the relay itself: {where}\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", line)


BY_SIGNALS = pytest.mark.parametrize(
    ("ending", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["Ctrl-C", "kill"]
)


@pytest.mark.slow
@linux_only
@pytest.mark.parametrize("command", ["demo --seconds 3600", "bench"])
@pytest.mark.parametrize(
    ("ending", "code"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -signal.SIGKILL)],
    ids=["Ctrl-C", "kill", "kill -9"],
)
def test_no_process_is_left_behind(ending: signal.Signals, code: int, command: str) -> None:
    children, rest = end_while_sending(command, ending, code)
    assert len(children) == 2 if command.startswith("demo") else len(children) >= 3
    assert rest == ""
    if ending != signal.SIGKILL:  # and it has waited for each of them
        assert [child for child in children if Path(f"/proc/{child}").exists()] == []


@pytest.mark.slow
@linux_only
@BY_SIGNALS
def test_nor_one_that_answers_no_more(ending: signal.Signals, code: int) -> None:
    _, rest = end_while_sending("demo --seconds 3600", ending, code, freeze=True)
    assert rest == ""


def end_while_sending(
    command: str, ending: signal.Signals, code: int, *, freeze: bool = False
) -> tuple[list[int], str]:
    """Send this signal to a command after its first burst, when all its children are there; and
    freeze those before, if wished. Gives them, and what came on standard error."""
    # SIGINT gets its usual meaning back, in case this test runs with it ignored.
    wrapper = f"""
import signal, sys
from snaptun_trio._cli import _main, _traffic
signal.signal(signal.SIGINT, signal.default_int_handler)
send = _traffic.Path._send
async def send_and_say(*args):
    result = await send(*args)
    _traffic.Path._send = send
    print("sent", file=sys.stderr, flush=True)
    return result
_traffic.Path._send = send_and_say
sys.exit(_main.main({command.split()!r}))
"""
    with subprocess.Popen(
        [sys.executable, "-P", "-c", wrapper],
        env=environment_for(None, {}),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
        text=True,
    ) as process:
        try:
            assert process.stderr is not None
            assert process.stderr.readline() == "sent\n"
            children = children_of(process.pid)
            for child in children if freeze else ():
                os.kill(child, signal.SIGSTOP)
            # A terminal sends Ctrl-C to all that it finds.
            send = os.killpg if ending == signal.SIGINT else os.kill
            send(process.pid, ending)
            assert process.wait(HANG_GUARD_SECONDS) == code
            left = [child for child in children if freeze and Path(f"/proc/{child}").exists()]
            for child in left:
                os.kill(child, signal.SIGKILL)  # nobody else would
            assert left == []
            # The children share this pipe, so its end is the end of the last of them.
            rest = process.stderr.read()
        finally:
            process.kill()
    return children, rest
