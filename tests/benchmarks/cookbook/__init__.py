# The documentation's programs beside the same programs on asyncio, uvloop and trio's own sockets.
#
# It is a command of its own, `python -m tests.benchmarks.cookbook`. Like its neighbour `relays` it
# measures whole programs, over sockets, while others load them.
