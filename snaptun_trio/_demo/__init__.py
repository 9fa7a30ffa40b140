# The demonstration: a sender, a forwarder and a sink, each in a process of its own, on loopback.
#
#     sender  --numbered datagrams-->  forwarder  ------>  sink
#        ^------------- "settled up to number n" -----------+
#
# It uses the library through its public names only, and the library knows nothing of it.
#
#     _datagrams.py   what a datagram carries: its number and its checksum
#     _ledger.py      the counts, and whether they add up
#     _talk.py        the lines of JSON between the parent and the three processes
#     _ends.py        the sender and the sink
#     _forward.py     the two forwarders: the pump, and plain trio.socket
#     _run.py         the parent: one leg from start to ledger
#     _show.py        the progress line and the table
