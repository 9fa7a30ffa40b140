# What the library costs, beside the bare system calls and beside other libraries.
#
# Run it with `python -m tests.benchmarks --help`, or `nox -s bench`.
