# aiofastnet as a contender: asyncio's protocol and loop with aiofastnet's transports.

from __future__ import annotations

import aiofastnet

from ._peer_asyncio import works

NAME = "aiofastnet"
MOST_DATAGRAMS = 512
WORKS = works(aiofastnet.loop_factory())
