# uvloop as a contender: asyncio's protocol on libuv's loop.

from __future__ import annotations

import uvloop

from ._peer_asyncio import works

NAME = "uvloop"
MOST_DATAGRAMS = 512
WORKS = works(uvloop.new_event_loop)
