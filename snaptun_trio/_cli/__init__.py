# The command line, `snaptun-trio` or `python -m snaptun_trio`: programs that use the library by
# its public names only. The library knows nothing of them, and needs nothing that they need.
#
#     _main.py        the commands, and how each ends: exit codes, and one line for what went wrong
#     _arguments.py   what arguments become, and what is said of wrong ones
#     _screen.py      tables, progress, JSON, and what is said of the machine
#     _*_command.py   one command each
#     _plot.py        the picture of bench
#
#     sender  --numbered datagrams-->  forwarder  ------>  sink        the path of demo and bench
#        ^------------- "settled up to number n" -----------+
#
#     _talk.py        the lines of JSON between a command and its processes
#     _datagrams.py   what a datagram carries: its number and its checksum
#     _ends.py        the sender and the sink
#     _forwarders.py  what is compared: the pump, trio.socket, asyncio, uvloop
#     _path.py        the three processes of a path, from outside
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
