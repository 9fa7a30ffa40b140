# `snaptun-trio demo`, from outside as a user runs it, and with faults put in: a forwarder that
# loses or changes something, a process that dies. Its parts are in `test_cli_path.py`.

from __future__ import annotations

import json
import textwrap
from typing import TYPE_CHECKING, Any

import pytest
import trio

from snaptun_trio._cli import _child, _demo_command, _path
from snaptun_trio._cli._arguments import CommandError
from snaptun_trio._cli._main import main
from snaptun_trio._version import __version__

from .command_line import HANG_GUARD_SECONDS, linux_only, run_cli

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


def use_forwarder(
    monkeypatch: pytest.MonkeyPatch, name: str, *command: str, patience: float = 3.0
) -> None:
    """Have the demo run with this forwarder alone."""
    monkeypatch.setitem(_path.FORWARDERS, name, command)
    monkeypatch.setattr(_demo_command, "LEGS", (name,))
    monkeypatch.setattr(_path, "PATIENCE_SECONDS", patience)


def use_code(
    monkeypatch: pytest.MonkeyPatch, directory: Path, code: str, *, patience: float = 3.0
) -> None:
    """The same with the given code, which finds the forwarders' own names in scope."""
    head = """
        import socket
        import sys
        import time
        import trio
        from snaptun_trio._cli._forwarders import *
        from snaptun_trio._cli._forwarders import LOOPBACK, forward

        def play(kind):
            forward(kind((LOOPBACK, int(sys.argv[1]))))

    """
    script = directory / "forwarder.py"
    script.write_text(textwrap.dedent(head) + textwrap.dedent(code))
    use_forwarder(monkeypatch, "forwarder under test", str(script), patience=patience)


def figures(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """What was printed, which is JSON and nothing else."""
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
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
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert found["adds_up"] is True
    assert found["version"] == __version__
    assert found["settings"] == {"size": 1200, "train": 50, "datagrams": 3001, "seconds": None}
    assert [leg["name"] for leg in found["legs"]] == ["snaptun_trio pump", "trio.socket"]
    for leg in found["legs"]:
        assert leg["sent"] == 3050
        assert leg["delivered"] + (leg["dropped"] or 0) == 3050
        assert leg["problems"] == []
        assert leg["cpu_microseconds"] > 0
        assert leg["datagrams_per_second"] > 0
    pump = found["legs"][0]
    if "SNAPTUN_TRIO_GSO" in environment:
        assert pump["gso"] is False
    if "SNAPTUN_TRIO_GRO" in environment:
        assert pump["gro"] is False


@pytest.mark.slow
def test_a_run_by_time_with_single_datagrams() -> None:
    options = ("--seconds", "0.5", "--train", "1", "--size", "100", "--json")
    done = run_cli("demo", *options)
    assert done.returncode == 0, done.stdout + done.stderr
    for leg in json.loads(done.stdout)["legs"]:
        assert leg["sent"] > _demo_command.WARM_UP_DATAGRAMS
        assert leg["sent"] == leg["delivered"] + (leg["dropped"] or 0)


@pytest.mark.slow
def test_a_run_of_a_single_datagram() -> None:
    done = run_cli("demo", "--datagrams", "1", "--train", "1", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    assert [leg["sent"] for leg in json.loads(done.stdout)["legs"]] == [1, 1]


@pytest.mark.slow
def test_the_table_is_plain_text_where_there_is_no_terminal() -> None:
    done = run_cli("demo", "--datagrams", "500")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "\x1b" not in done.stdout + done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    (heading,) = (line for line in lines if "datagrams/s" in line)
    assert " ".join(heading).endswith("sent delivered dropped by the kernel"), "in one line"
    assert [line[-3:-1] for line in lines if line[:1] == ["trio.socket"]] == [["500", "500"]]
    assert "Everything adds up" in done.stdout
    assert "500 delivered" in done.stderr


# --- faults put in ------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_datagram_lost_inside_the_forwarder_exits_with_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    use_code(
        monkeypatch,
        tmp_path,
        """
        class Lossy(SocketForwarder):
            async def run(self):
                udp = trio.socket.from_stdlib_socket(self.udp)
                while True:
                    packet, _ = await udp.recvfrom(65_536)
                    self.received += 1
                    if self.received != 1500:
                        await udp.sendto(packet, self.target)
                        self.sent += 1

        play(Lossy)
        """,
    )
    assert main(["demo", "--datagrams", "2000", "--json"]) == 1
    found = figures(capsys)
    assert found["adds_up"] is False
    (leg,) = found["legs"]
    inside = "1 datagrams are missing in the forwarder, between receiving and sending"
    assert inside in leg["problems"]
    assert leg["unaccounted"] == 1
    assert leg["delivered"] == 1999


@pytest.mark.slow
def test_a_changed_byte_exits_with_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    use_code(
        monkeypatch,
        tmp_path,
        """
        class Corrupting(SocketForwarder):
            async def run(self):
                udp = trio.socket.from_stdlib_socket(self.udp)
                while True:
                    packet, _ = await udp.recvfrom(65_536)
                    self.received += 1
                    if self.received == 150:
                        packet = packet[:-20] + bytes([packet[-20] ^ 1]) + packet[-19:]
                    await udp.sendto(packet, self.target)
                    self.sent += 1

        play(Corrupting)
        """,
    )
    assert main(["demo", "--datagrams", "200"]) == 1
    shown = capsys.readouterr().out
    assert "IT DOES NOT ADD UP" in shown
    assert "1 datagrams arrived with a wrong checksum" in shown


@pytest.mark.slow
def test_a_datagram_that_is_doubled_exits_with_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    use_code(
        monkeypatch,
        tmp_path,
        """
        class Doubling(SocketForwarder):
            async def run(self):
                udp = trio.socket.from_stdlib_socket(self.udp)
                while True:
                    packet, _ = await udp.recvfrom(65_536)
                    self.received += 1
                    for _ in range(1 + (self.received == 150)):
                        await udp.sendto(packet, self.target)
                        self.sent += 1

        play(Doubling)
        """,
    )
    assert main(["demo", "--datagrams", "200", "--json"]) == 1
    (leg,) = figures(capsys)["legs"]
    assert "1 datagrams arrived more than once" in leg["problems"]
    assert leg["delivered"] == 200


@pytest.mark.slow
def test_a_forwarder_that_dies_on_the_way_exits_with_1(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    use_code(
        monkeypatch,
        tmp_path,
        """
        import os

        class Mortal(SocketForwarder):
            async def run(self):
                udp = trio.socket.from_stdlib_socket(self.udp)
                while self.sent < 7000:
                    packet, _ = await udp.recvfrom(65_536)
                    self.received += 1
                    await udp.sendto(packet, self.target)
                    self.sent += 1
                os._exit(3)

        play(Mortal)
        """,
        patience=HANG_GUARD_SECONDS,
    )
    assert main(["demo", "--seconds", "3600"]) == 1
    last = capfd.readouterr().err.splitlines()[-1]
    assert last == "snaptun-trio: the forwarder under test process ended early"


@pytest.mark.slow
@linux_only
@pytest.mark.parametrize("kind", ["pump", "trio.socket"])
def test_what_the_kernel_drops_is_accounted_for_to_the_datagram(
    kind: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The forwarder's receive buffer is the smallest there is, behind the sender's back, and it
    # does not read on until the kernel has dropped something.
    use_code(
        monkeypatch,
        tmp_path,
        """
        def wait_for_drops(forwarder):
            give_up = time.monotonic() + 60
            receiver = forwarder.receiver
            while time.monotonic() < give_up:
                if receiver.statistics().buffers_dropped_by_kernel:
                    break
                time.sleep(0.001)

        class Shrunk:
            def report(self):
                self.udp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
                return {**super().report(), "receive_buffer_size": 4 << 20}

        class SlowPump(Shrunk, PumpForwarder):
            def handle(self, batch):
                wait_for_drops(self)
                return super().handle(batch)

        class SlowSocket(Shrunk, SocketForwarder):
            async def run(self):
                await trio.to_thread.run_sync(wait_for_drops, self)
                await super().run()

        play(SlowPump if KIND == "pump" else SlowSocket)
        """.replace("KIND", repr(kind)),
        patience=_path.PATIENCE_SECONDS,
    )
    assert main(["demo", "--datagrams", "5000", "--json"]) == 0
    (found,) = figures(capsys)["legs"]
    assert found["dropped"] > 0
    assert found["sent"] == found["delivered"] + found["dropped"] == 5000


def test_a_forwarder_that_ends_early_exits_with_1(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    use_forwarder(monkeypatch, "nobody", "-c", "pass")
    assert main(["demo", "--datagrams", "100"]) == 1
    shown = capsys.readouterr()
    assert shown.err == "snaptun-trio: the nobody process ended early\n"


def test_a_forwarder_that_fails_is_quoted_without_a_traceback(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    use_code(
        monkeypatch,
        tmp_path,
        """
        class Broken(SocketForwarder):
            async def run(self):
                raise OSError(5, "Five")

        play(Broken)
        """,
    )
    assert main(["demo", "--datagrams", "100"]) == 1
    shown = capfd.readouterr()
    assert shown.err == "snaptun-trio: the forwarder under test process: [Errno 5] Five\n"


@pytest.mark.slow
def test_a_forwarder_that_forwards_nothing_is_given_up(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    use_code(
        monkeypatch,
        tmp_path,
        """
        class Hole(SocketForwarder):
            async def run(self):
                await trio.sleep_forever()

        play(Hole)
        """,
        patience=0.5,
    )
    assert main(["demo", "--seconds", "3600"]) == 1
    assert "nothing has arrived for 0.5 s" in capsys.readouterr().err


async def test_a_child_that_is_silent_is_reported_and_one_that_stays_is_killed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_child, "ANSWER_WITHIN_SECONDS", 0.1)
    monkeypatch.setattr(_child, "END_WITHIN_SECONDS", 0.1)
    with trio.fail_after(HANG_GUARD_SECONDS):
        with pytest.raises(CommandError, match="the mute process did not answer"):
            async with _child.open_child("mute", ["-c", "import time; time.sleep(3600)"]) as child:
                await child.ask()
    assert child.process.returncode is not None


async def test_an_order_to_a_child_that_is_gone_is_an_error() -> None:
    with trio.fail_after(HANG_GUARD_SECONDS):
        async with _child.open_child("gone", ["-c", "pass"]) as child:
            await child.process.wait()
            with pytest.raises(CommandError, match="the gone process ended early"):
                await child.ask()
