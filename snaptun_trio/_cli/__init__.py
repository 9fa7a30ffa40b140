# The command line, `snaptun-trio` or `python -m snaptun_trio`: programs that use the library by
# its public names only. The library knows nothing of them, and needs nothing that they need.
#
#     _main.py              the commands, and how each ends: exit codes, a line for what went wrong
#     _terminal.py          what all have in common: arguments, tables, JSON
#     _*_commands.py        what each does
#     _forwarders.py        what demo and bench compare, each in a process of its own
#     _traffic.py           what they send to it and take in again
#     _relay_view.py        what is shown of a relay: lines, JSON, a live view
#     _metrics.py           what Prometheus is told of it
