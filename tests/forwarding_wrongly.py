# Forwarders for demo and bench with faults in them: each a script that plays what the library's own
# forwarder is replaced with.

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

HEAD = """
import os
import socket
import sys
import time

import attrs
import trio

from snaptun_trio._cli import _forwarders
from snaptun_trio._cli._forwarders import FORWARDERS, LOOPBACK, PUMP


def play(run, name="trio.socket"):
    '''Be a forwarder that does this, an async function of a socket and the target.'''
    FORWARDERS[name] = lambda udp, target: trio.run(run, udp, target)
    _forwarders.main(name, sys.argv[1])


def play_changing(change):
    '''Send instead of each datagram those that a function of it, and of how many came before,
    gives.'''

    async def run(udp, target):
        sock = trio.socket.from_stdlib_socket(udp)
        number = 0
        while True:
            packet, _ = await sock.recvfrom(65_536)
            for each in change(packet, number):
                await sock.sendto(each, target)
            number += 1

    play(run)


def tell(**facts):
    '''Say this of the socket, whatever is true.'''

    class Told(_forwarders.UdpBatchReceiver):
        def statistics(self):
            return attrs.evolve(super().statistics(), **facts)

    _forwarders.UdpBatchReceiver = Told


"""
HOLE = """
async def take_nothing(udp, target):
    await trio.sleep_forever()

play(take_nothing)
"""


def script_of(directory: Path, code: str) -> str:
    """A file that is a forwarder: what is in `HEAD` is in scope."""
    script = directory / "forwarder.py"
    script.write_text(HEAD + textwrap.dedent(code))
    return str(script)
