# `python -m snaptun_trio demo`, from outside as a user runs it, and with faults put in: a forwarder
# that loses or changes something, a process that dies. Its parts are in `test_demo_parts.py`.

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio

import snaptun_trio
from snaptun_trio.__main__ import main
from snaptun_trio._demo import _run, _show, _talk
from snaptun_trio._demo._run import Leg
from snaptun_trio._version import __version__

if TYPE_CHECKING:
    from collections.abc import Mapping

PACKAGE_PARENT = Path(snaptun_trio.__file__).resolve().parents[1]
HANG_GUARD_SECONDS = 240

linux_only = pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux tells what a socket dropped (SO_MEMINFO)"
)


def run_cli(
    *arguments: str | Path,
    cwd: Path,
    path: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run ``python -m snaptun_trio`` as a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "snaptun_trio", *map(str, arguments)],
        cwd=cwd,
        env={**environment_for(path), **(environment or {})},
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=HANG_GUARD_SECONDS,
        check=False,
    )


def environment_for(path: Path | None) -> Mapping[str, str]:
    search = [str(place) for place in (path, PACKAGE_PARENT) if place is not None]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(search),
        "PYTHONIOENCODING": "utf-8",
    }


def hide_rich(directory: Path) -> Path:
    """A directory which, on the module search path, makes ``import rich`` fail."""
    (directory / "rich.py").write_text("raise ImportError('hidden by a test')\n")
    return directory


def forwarder(directory: Path, code: str) -> Leg:
    """A leg whose forwarder is the given code; it finds the demonstration's own names in scope."""
    head = """
        import socket
        import sys
        import time
        import trio
        from snaptun_trio._demo._forward import *
        from snaptun_trio._demo._talk import Orders
    """
    script = directory / "forwarder.py"
    script.write_text(textwrap.dedent(head) + textwrap.dedent(code))
    return Leg("the forwarder under test", (str(script),))


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
def test_a_small_run_accounts_for_every_datagram(
    tmp_path: Path, environment: Mapping[str, str]
) -> None:
    figures = tmp_path / "figures.json"
    # 3001 datagrams are 61 trains of 50.
    options = ("--datagrams", "3001", "--json", figures)
    done = run_cli("demo", *options, cwd=tmp_path, environment=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Everything adds up" in done.stdout
    found = json.loads(figures.read_text(encoding="utf-8"))
    assert found["adds_up"] is True
    assert found["version"] == __version__
    assert [leg["name"] for leg in found["legs"]] == ["snaptun_trio pump", "trio.socket"]
    for leg in found["legs"]:
        assert leg["sent"] == 3050
        assert leg["delivered"] + (leg["dropped"] or 0) == 3050
        assert leg["problems"] == []
        assert leg["cpu_microseconds"] > 0
        assert leg["datagrams_per_second"] > 0
        assert f"{leg['delivered']:,}" in done.stdout
    pump = found["legs"][0]
    if "SNAPTUN_TRIO_GSO" in environment:
        assert pump["gso"] is False
    if "SNAPTUN_TRIO_GRO" in environment:
        assert pump["gro"] is False


@pytest.mark.slow
def test_a_run_by_time_with_single_datagrams(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    options = ("--seconds", "0.5", "--train", "1", "--size", "100", "--json", figures)
    done = run_cli("demo", *options, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    for leg in json.loads(figures.read_text(encoding="utf-8"))["legs"]:
        assert leg["sent"] > _run.WARM_UP_DATAGRAMS
        assert leg["sent"] == leg["delivered"] + (leg["dropped"] or 0)


@pytest.mark.slow
def test_it_runs_without_rich(tmp_path: Path) -> None:
    done = run_cli("demo", "--datagrams", "500", cwd=tmp_path, path=hide_rich(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].split() == " ".join(_show.HEADINGS).split()
    assert lines[2].startswith("snaptun_trio pump ")
    assert lines[3].startswith("trio.socket ")
    assert "snaptun_trio pump: 100%, 500 delivered" in done.stderr.splitlines()
    assert "trio.socket: 100%, 500 delivered" in done.stderr.splitlines()


def test_version(tmp_path: Path) -> None:
    done = run_cli("--version", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, f"snaptun_trio {__version__}\n")


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nonsense"],
        ["demo", "--nonsense"],
        ["demo", "--seconds", "0"],
        ["demo", "--seconds", "inf"],
        ["demo", "--datagrams", "-5"],
        ["demo", "--datagrams", "5", "--seconds", "1"],
        ["demo", "--size", "11"],
        ["demo", "--size", "65508"],
        ["demo", "--train", "65", "--size", "100"],
        ["demo", "--train", "55"],
        ["demo", "--json", "no/such/directory/figures.json"],
    ],
    ids=" ".join,
)
def test_a_usage_error_exits_with_2(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "usage: python -m snaptun_trio" in capsys.readouterr().err


@pytest.mark.slow
@linux_only
@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGKILL], ids=["Ctrl-C", "kill -9"])
def test_no_process_is_left_behind(ending: signal.Signals, tmp_path: Path) -> None:
    # The wrapper gives SIGINT its usual meaning back, in case this test runs with it ignored.
    wrapper = (
        "import runpy, signal, sys;"
        "signal.signal(signal.SIGINT, signal.default_int_handler);"
        "sys.argv[1:] = ['demo', '--seconds', '3600'];"
        "runpy.run_module('snaptun_trio', run_name='__main__', alter_sys=True)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", wrapper],
        cwd=tmp_path,
        env=environment_for(hide_rich(tmp_path)),
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stderr is not None
            assert process.stderr.readline().startswith("snaptun_trio pump: ")
            children = children_of(process.pid)
            assert len(children) == 3
            process.send_signal(ending)
            # The children share this pipe, so its end is the end of the last of them.
            rest = process.stderr.read()
            code = process.wait(HANG_GUARD_SECONDS)
        finally:
            process.kill()
    assert "Traceback" not in rest
    assert code == (130 if ending == signal.SIGINT else -signal.SIGKILL)
    if ending == signal.SIGINT:  # and it has waited for each of them
        assert [child for child in children if Path(f"/proc/{child}").exists()] == []


def children_of(parent: int) -> list[int]:
    found = []
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            lines = status.read_text().splitlines()
        except OSError:
            continue  # it has just ended
        if f"PPid:\t{parent}" in lines:
            found.append(int(status.parent.name))
    return found


# --- faults put in ------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_datagram_lost_inside_the_forwarder_exits_with_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    leg = forwarder(
        tmp_path,
        """
        class Lossy(SocketForwarder):
            async def run(self, *, task_status):
                task_status.started()
                while True:
                    packet, _ = await self._udp.recvfrom(65_536)
                    self._received += 1
                    if self._received != 1500:
                        await self._udp.sendto(packet, self._target)
                        self._sent += 1

        trio.run(run_forwarder, Orders(), Lossy)
        """,
    )
    figures = tmp_path / "figures.json"
    arguments = ["demo", "--datagrams", "2000", "--json", str(figures)]
    assert main(arguments, legs=[leg], patience=3.0) == 1
    shown = capsys.readouterr().out
    assert "IT DOES NOT ADD UP" in shown
    assert "the forwarder: 1 datagrams are missing between receiving and sending" in shown
    found = json.loads(figures.read_text(encoding="utf-8"))
    assert found["adds_up"] is False
    assert found["legs"][0]["unaccounted"] == 1
    assert found["legs"][0]["delivered"] == 1999


@pytest.mark.slow
def test_a_changed_byte_exits_with_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    leg = forwarder(
        tmp_path,
        """
        class Corrupting(SocketForwarder):
            async def run(self, *, task_status):
                task_status.started()
                while True:
                    packet, _ = await self._udp.recvfrom(65_536)
                    self._received += 1
                    if self._received == 150:
                        packet = packet[:-20] + bytes([packet[-20] ^ 1]) + packet[-19:]
                    await self._udp.sendto(packet, self._target)
                    self._sent += 1

        trio.run(run_forwarder, Orders(), Corrupting)
        """,
    )
    assert main(["demo", "--datagrams", "200"], legs=[leg], patience=3.0) == 1
    assert "1 datagrams arrived with a wrong checksum" in capsys.readouterr().out


@pytest.mark.slow
@linux_only
@pytest.mark.parametrize("kind", ["pump", "trio.socket"])
def test_what_the_kernel_drops_is_accounted_for_to_the_datagram(kind: str, tmp_path: Path) -> None:
    # The forwarder's receive buffer is the smallest there is, behind the sender's back, and it
    # does not read on until the kernel has dropped something.
    leg = forwarder(
        tmp_path,
        """
        def wait_for_drops(udp):
            give_up = time.monotonic() + 60
            while not datagrams_dropped(udp) and time.monotonic() < give_up:
                time.sleep(0.001)

        def shrunk(udp):
            udp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
            return udp

        class SlowPump(PumpForwarder):
            async def run(self, *, task_status):
                def handler(batch):
                    wait_for_drops(self._udp)
                    return batch.to(self._target)

                async with snaptun_trio.open_batch_pump(
                    shrunk(self._udp), handler=handler
                ) as self._pump:
                    task_status.started()
                    await trio.sleep_forever()

        class SlowSocket(SocketForwarder):
            async def run(self, *, task_status):
                shrunk(self._udp)
                task_status.started()
                await trio.to_thread.run_sync(wait_for_drops, self._udp)
                await super().run()

        trio.run(run_forwarder, Orders(), SlowPump if KIND == "pump" else SlowSocket)
        """.replace("KIND", repr(kind)),
    )
    figures = tmp_path / "figures.json"
    assert main(["demo", "--datagrams", "5000", "--json", str(figures)], legs=[leg]) == 0
    (found,) = json.loads(figures.read_text(encoding="utf-8"))["legs"]
    assert found["dropped"] > 0
    assert found["sent"] == found["delivered"] + found["dropped"] == 5000


def test_a_forwarder_that_ends_early_exits_with_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--datagrams", "100"], legs=[Leg("nobody", ("-c", "pass"))]) == 1
    assert "the nobody process ended early" in capsys.readouterr().err


@pytest.mark.slow
def test_a_forwarder_that_forwards_nothing_is_given_up(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    leg = forwarder(
        tmp_path,
        """
        class Hole(SocketForwarder):
            async def run(self, *, task_status):
                task_status.started()
                await trio.sleep_forever()

        trio.run(run_forwarder, Orders(), Hole)
        """,
    )
    monkeypatch.setattr(_run, "GIVE_UP_AFTER_SECONDS", 0.5)
    assert main(["demo", "--seconds", "3600"], legs=[leg], patience=0.5) == 1
    assert "nothing has arrived for 0.5 s" in capsys.readouterr().err


async def test_a_child_that_is_silent_is_reported_and_one_that_stays_is_killed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_talk, "ANSWER_WITHIN_SECONDS", 0.1)
    monkeypatch.setattr(_talk, "END_WITHIN_SECONDS", 0.1)
    with trio.fail_after(HANG_GUARD_SECONDS):
        with pytest.raises(_talk.ChildError, match="the mute process did not answer"):
            async with _talk.open_child("mute", ["-c", "import time; time.sleep(3600)"]) as child:
                await child.answer()
    assert child._process.returncode is not None


async def test_an_order_to_a_child_that_is_gone_is_an_error() -> None:
    with trio.fail_after(HANG_GUARD_SECONDS):
        async with _talk.open_child("gone", ["-c", "pass"]) as child:
            await child._process.wait()
            with pytest.raises(_talk.ChildError, match="the gone process ended early"):
                await child.order(anything=1)
