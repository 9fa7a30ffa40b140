# The documentation's programs that have a relay in them: one relays, tells how it goes and ends in
# order, the other has new targets as it goes.

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio
import trio.testing

from . import ends, relays
from .examples import example

if TYPE_CHECKING:
    import pytest

PROGRAM = Path(__file__).parent.parent / "docs" / "examples" / "relay.py"


def test_a_program_with_a_relay_in_it_relays_and_tells_and_ends(udp: ends.MakeSocket) -> None:
    target, client = udp(), udp()
    command = [sys.executable, "-P", str(PROGRAM), "0", str(ends.address_of(target)[1]), "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            listen, status = [
                int(process.stdout.readline().removeprefix(f"{what} on port "))
                for what in ("relaying", "statistics")
            ]
            client.connect(("127.0.0.1", listen))
            for number in range(3):
                client.send(b"question %d" % number)
                ends.wait_until_readable(target)
                question, relay = target.recvfrom(100)
                target.sendto(question.upper(), relay)
                assert ends.read_plainly(client, 1) == [b"QUESTION %d" % number]
            with socket.create_connection(("127.0.0.1", status)) as stream:
                told = json.loads(b"".join(iter(lambda: stream.recv(4096), b"")))
            assert told["sessions"] == 1
            assert told["to_clients"]["datagrams_out"] == 3
            (there,) = told["targets"]
            assert there["address"][1] == ends.address_of(target)[1]
            assert (there["sessions"], there["datagrams_out"]) == (1, 3)
            process.send_signal(signal.SIGTERM)
            assert process.stdout.read() == "3 datagrams went to the target\n"
            assert process.wait() == 0
        finally:
            process.kill()


async def test_a_program_follows_a_name_and_takes_a_target_out_of_service(
    udp: ends.MakeSocket,
    monkeypatch: pytest.MonkeyPatch,
    mock_clock: trio.testing.MockClock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    program = example("relay_targets")
    target, client = udp(), udp()
    port = ends.address_of(target)[1]
    hosts: list[str] = []

    async def look_up(name: str, port: int, **_: object) -> list[Any]:
        await trio.lowlevel.checkpoint()
        if not hosts:
            raise socket.gaierror(socket.EAI_AGAIN, "try again")
        kind = (socket.AF_INET, socket.SOCK_DGRAM, 17, "")
        numeric = hosts if name == "the.name" else [name]
        return [(*kind, (host, port)) for host in numeric]

    async with trio.open_nursery() as nursery, relays.running([target]) as relay:
        monkeypatch.setattr(trio.socket, "getaddrinfo", look_up)
        nursery.start_soon(program.follow, relay, "the.name", port)

        async def passes(seconds: float) -> None:
            await trio.testing.wait_all_tasks_blocked()
            mock_clock.jump(seconds)
            await trio.testing.wait_all_tasks_blocked()

        await passes(60.0)
        assert [*relay.targets] == [("127.0.0.1", port)]
        assert "no new targets" in caplog.text
        hosts += ["127.0.0.1", "127.0.0.2"]
        await passes(59.0)
        assert [*relay.targets] == [("127.0.0.1", port)]
        await passes(1.0)
        assert [*relay.targets] == [("127.0.0.1", port), ("127.0.0.2", port)]
        await program.take_out(relay, ("127.0.0.2", port))
        assert [*relay.targets] == [("127.0.0.1", port)]
        assert program.dead_targets(relay) == []
        ends.deafen(target)
        await relays.Stage(relay, [client]).send(0, b"into the void")
        await relays.until(relay, lambda seen: seen.to_targets.asynchronous_errors)
        assert program.dead_targets(relay) == [("127.0.0.1", port)]
        nursery.cancel_scope.cancel()
