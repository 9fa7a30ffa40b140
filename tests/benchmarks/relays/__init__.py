# A UDP relay beside what people use today: nginx, socat, and programs on asyncio, uvloop and trio.
#
# It is a command of its own, `python -m tests.benchmarks.relays`. Unlike its neighbours it measures
# whole programs, over sockets, while others load them.
