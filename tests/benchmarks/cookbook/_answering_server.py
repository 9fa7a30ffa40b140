# The tutorial's DNS server, which answers without its tasks what it can: a program by itself.
#
# `python _answering_server.py HOST PORT`

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from snaptun_trio import serve_udp

sys.path.insert(0, str(Path(__file__).parents[3] / "docs" / "examples"))

import dns_server
from dns_message import answer_to

if TYPE_CHECKING:
    from snaptun_trio import Address


def answer(question: bytes, _: Address) -> bytes | tuple[()]:
    """The answer, or none at all."""
    return answer_to(question) or ()


if __name__ == "__main__":
    vars(dns_server)["serve_udp"] = partial(serve_udp, answer=answer)
    trio.run(dns_server.main, sys.argv[1], int(sys.argv[2]))
