# The command line, `snaptun-trio` or `python -m snaptun_trio`: programs that use the library by
# its public names only. The library knows nothing of them, and needs nothing that they need.
#
#     _main.py        the commands, and how each ends: exit codes, and one line for what went wrong
#     _arguments.py   what arguments become, and what is said of wrong ones
#     _screen.py      tables, progress, JSON, and what is said of the machine
#     _*_command.py   one command each
#     _child.py       a process that a command starts, from the command's side
#
#     Path  --numbered trains-->  forwarder (a process)  ------>  Path        demo and bench
#
#     _path.py        both ends of it, and how much may be under way
#     _forwarders.py  what is compared: the pump, trio.socket, asyncio, uvloop
#     _datagrams.py   what a datagram carries: its number and its checksum
#     _ledger.py      the counts, and whether they add up
#
#     client  <-->  UdpRelay in a worker  <-->  target        the command `relay`
#                     ^ orders, v reports
#     supervisor --sums--> view, metrics
#
#     _relay_worker.py   a process that relays
#     _supervisor.py     keeps the workers running, each on a socket of its own
#     _relay_totals.py   what their reports come to
#     _relay_view.py     what is shown of it: lines, JSON, a live view
#     _metrics.py        what Prometheus is told of it
