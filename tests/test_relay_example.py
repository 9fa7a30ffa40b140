# The documentation's program that has a relay in it: it relays, tells how it goes, ends in order.

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from pathlib import Path

from . import ends

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
            process.send_signal(signal.SIGTERM)
            assert process.stdout.read() == "3 datagrams went to the target\n"
            assert process.wait() == 0
        finally:
            process.kill()
