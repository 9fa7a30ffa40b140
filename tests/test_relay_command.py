# `snaptun-trio relay`, from outside as a user runs it: how it begins and ends, and what it says.

from __future__ import annotations

import fcntl
import os
import pty
import signal
import socket
import struct
import subprocess
import termios
from typing import TYPE_CHECKING

import pytest

from snaptun_trio._cli._main import main

from . import ends
from .relaying import (
    COMMAND,
    ENVIRONMENT,
    ask,
    at,
    check_sums,
    freeze,
    open_relay,
    receive,
    run_relay,
    status_of,
)

if TYPE_CHECKING:
    from .ends import MakeSocket

pytestmark = pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="for Linux's /proc")

BOTH = pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])
NOBODY = "127.0.0.1:9"


def address_of(sock: socket.socket) -> str:
    return at(ends.address_of(sock))


# --- from beginning to end ------------------------------------------------------------------------


@pytest.mark.core
@BOTH
def test_a_datagram_goes_and_comes_back_and_the_end_is_clean(
    udp: MakeSocket, ending: signal.Signals
) -> None:
    target = udp()
    with open_relay(address_of(target)) as relay, relay.client() as client:
        assert relay.head == f"relaying on 127.0.0.1:{relay.port} to 1 target, 1 worker\n"
        ask(client, target)
        code, out, err = relay.end(ending)
    assert (code, err) == (0, "")
    assert out.splitlines()[:3] == [
        "to targets: 1 in, 1 out",
        "to clients: 1 in, 1 out",
        "sessions: 1 ever, turned away 0 times; 0 workers replaced",
    ]


def test_ipv6_and_every_address(udp: MakeSocket) -> None:
    target = udp("::1")
    where = f"[::1]:{ends.address_of(target)[1]}"
    with open_relay(where, "--workers", "2", listen=":0") as relay:
        for host in ("127.0.0.1", "::1"):
            with ends.bound_socket(host) as client:
                client.connect((host, relay.port))
                ask(client, target)
        assert relay.end()[0] == 0


@pytest.mark.core
def test_what_is_under_way_at_the_end_is_sent_first(udp: MakeSocket) -> None:
    target = udp()
    with open_relay(address_of(target), "--json") as relay, relay.client() as client:
        source = ask(client, target)
        (worker,) = relay.workers()
        freeze(worker)
        for number in range(100):
            client.send(b"question %d" % number)
            target.sendto(b"answer %d" % number, source)
        relay.process.send_signal(signal.SIGTERM)
        os.kill(worker, signal.SIGCONT)
        facts = list(relay.read_json())[-1]
        assert relay.process.wait() == 0
        assert ends.read_plainly(target, 100) == [b"question %d" % n for n in range(100)]
        assert ends.read_plainly(client, 100) == [b"answer %d" % n for n in range(100)]
    assert facts["final"] is True
    for way in ("to_targets", "to_clients"):
        assert facts[f"{way}.datagrams_in"] == facts[f"{way}.datagrams_out"] == 101
    check_sums(facts)


@BOTH
def test_a_second_signal_ends_it_at_once(udp: MakeSocket, ending: signal.Signals) -> None:
    target = udp()
    with open_relay(address_of(target), "--metrics", "127.0.0.1:0") as relay:
        (worker,) = relay.workers()
        freeze(worker)  # which never says that it has ended
        relay.process.send_signal(ending)
        while status_of(relay.metrics, "/ready") == 200:
            pass
        code, _, err = relay.end(ending)  # and stderr ends only with the last of the workers
    assert (code, err) == (128 + ending, "")


@pytest.mark.core
def test_workers_do_not_outlive_the_supervisor(udp: MakeSocket) -> None:
    target = udp()
    with open_relay(address_of(target), "--workers", "2") as relay:
        assert len(relay.workers()) == 2
        code, _, err = relay.end(signal.SIGKILL)  # they share the pipe, so it ends with the last
    assert (code, err) == (-signal.SIGKILL, "")


# --- what goes wrong ------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("shared", [False, True])
def test_an_address_that_is_in_use(workers: str, shared: bool) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, shared)
        sock.bind(("127.0.0.1", 0))
        done = run_relay(address_of(sock), NOBODY, "--workers", workers)
    expect_one_line(done, "address already in use: 127.0.0.1:")


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_target_that_is_not_known(workers: str) -> None:
    done = run_relay("127.0.0.1:0", "does-not-exist.invalid:53", "--workers", workers)
    expect_one_line(done, "does-not-exist.invalid")


def test_a_listening_name_that_is_not_known() -> None:
    expect_one_line(run_relay("does-not-exist.invalid:53", NOBODY), "does-not-exist.invalid")


def test_a_port_for_metrics_that_is_in_use() -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        where = f"127.0.0.1:{sock.getsockname()[1]}"
        done = run_relay("127.0.0.1:0", NOBODY, "--metrics", where)
    expect_one_line(done, f"address already in use: --metrics {where}")


def expect_one_line(done: subprocess.CompletedProcess[str], what: str) -> None:
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("snaptun-trio: ")
    assert what in line
    assert done.stdout == ""


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["127.0.0.1:0"],
        ["127.0.0.1", NOBODY],
        ["127.0.0.1:0", "127.0.0.1:0"],
        ["127.0.0.1:0", ":53"],
        ["127.0.0.1:0", "::1:53"],
        ["127.0.0.1:0", NOBODY, "--workers", "0"],
        ["127.0.0.1:0", NOBODY, "--max-sessions", "0"],
        ["127.0.0.1:0", NOBODY, "--max-sessions", "99999999999"],
        ["127.0.0.1:0", NOBODY, "--idle-timeout", "0"],
        ["127.0.0.1:0", NOBODY, "--idle-timeout", "nan"],
        ["127.0.0.1:0", NOBODY, "--grace", "-1"],
        ["127.0.0.1:0", NOBODY, "--interval", "0"],
        ["127.0.0.1:0", NOBODY, "--metrics", "9100"],
    ],
    ids=" ".join,
)
def test_wrong_arguments_exit_with_2(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["relay", *arguments])
    assert ended.value.code == 2
    assert "snaptun-trio relay: error: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "says"),
    [("--idle-timeout 0", "idle-timeout is"), ("--workers 2000", "workers is out of range")],
)
def test_a_mistake_that_the_library_tells_has_the_options_name(
    option: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["relay", "127.0.0.1:0", NOBODY, *option.split()])
    assert f"snaptun-trio relay: error: {says}" in capsys.readouterr().err


def test_help_has_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["relay", "--help"])
    assert ended.value.code == 0
    assert "example:\n  snaptun-trio relay :5353 192.0.2.1:53" in capsys.readouterr().out


def test_who_reads_the_json_may_have_read_enough(udp: MakeSocket) -> None:
    with open_relay(address_of(udp()), "--json", "--interval", "0.01") as relay:
        assert relay.process.stdout is not None
        assert relay.process.stderr is not None
        relay.process.stdout.close()
        assert relay.process.stderr.read() == ""
        assert relay.process.wait() == 1


# --- what it says ---------------------------------------------------------------------------------


@pytest.mark.core
def test_each_line_of_json_adds_up(udp: MakeSocket) -> None:
    target = udp()
    options = ("--json", "--interval", "0.01", "--workers", "2")
    with open_relay(address_of(target), *options) as relay, relay.client() as client:
        for _ in range(10):
            ask(client, target)
            check_sums(relay.read_until(lambda facts: True))
        facts = relay.read_until(lambda facts: facts["to_clients.datagrams_out"] == 10)
        assert (facts["workers"], facts["sessions"], facts["final"]) == (2, 1, False)
        relay.process.send_signal(signal.SIGTERM)
        lines = list(relay.read_json())
        assert relay.process.wait() == 0
    for facts in lines:
        check_sums(facts)
    assert [facts["final"] for facts in lines] == [False] * (len(lines) - 1) + [True]
    assert lines[-1]["to_targets.bytes_out"] == 50
    assert lines[-1]["worker_cpu_seconds"] > 0


def test_drops_are_said_on_standard_error(udp: MakeSocket) -> None:
    target = udp()
    options = ("--max-sessions", "1", "--interval", "0.01")
    with open_relay(address_of(target), *options) as relay, relay.client() as client:
        ask(client, target)
        ask(client, target)  # established: it does not make room
        with relay.client() as stranger:
            stranger.send(b"let me in")
            assert relay.news().endswith(" to targets: 1 dropped, table full\n")
        code, out, err = relay.end()
    assert (code, err) == (0, "")
    assert out.splitlines()[-1] == "to targets: 1 dropped, table full"
    assert "turned away 1 times" in out


def test_duplicate_serves_those_that_live(udp: MakeSocket) -> None:
    alive, dead, other = udp(), udp(), udp()
    targets = [address_of(alive), at(ends.deafen(dead)), address_of(other)]
    with open_relay(*targets, "--duplicate") as relay, relay.client() as client:
        assert " to 3 targets, 1 worker" in relay.head
        for number in range(50):
            client.send(b"%d" % number)
            for target in (alive, other):
                packet, source = receive(target)
                assert packet == b"%d" % number
                target.sendto(b"nobody hears this", source)
        assert relay.end()[0] == 0
        with pytest.raises(BlockingIOError):
            client.recv(100)


def test_the_live_view(udp: MakeSocket) -> None:
    target = udp()
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 160, 0, 0))
    command = [*COMMAND, "127.0.0.1:0", address_of(target), "--interval", "0.01"]
    environment = {**ENVIRONMENT, "TERM": "xterm"}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=theirs, text=True
    ) as process:
        try:
            os.close(theirs)
            seen = ""
            while "a receive call" not in seen or "CPU" not in seen:
                seen += os.read(ours, 65_536).decode()
            assert "relaying on 127.0.0.1:" in seen
            assert "0 sessions, 1 of 1 workers" in seen
            process.send_signal(signal.SIGTERM)
            with pytest.raises(OSError, match="Input/output error"):
                while True:  # a full terminal would stop it
                    seen += os.read(ours, 65_536).decode()
            assert process.stdout is not None
            assert process.stdout.readline() == "to targets: 0 in, 0 out\n"
            assert process.wait(ends.PATIENCE) == 0
            assert "Traceback" not in seen
        finally:
            process.kill()
            os.close(ours)
