# QUIC by aioquic: the documentation's programs beside aioquic's own on asyncio and uvloop.
#
# It is a command of its own, `python -m tests.benchmarks.quic`: whole programs, each in a process.
