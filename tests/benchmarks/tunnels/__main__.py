# The command: `python -m tests.benchmarks.tunnels`.
#
# One TCP connection of iperf3 through each tunnel in turn, on the same path: two network namespaces
# and a cable between them. What a tunnel costs is the CPU time of its two processes for what
# iperf3's receiver got. All processes share the machine's processors, so throughput is also theirs.

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...faults import netns
from .. import _machine
from .._options import add_outputs, fill_in, make_parser, progress
from .._report import number, rst_document, show
from .._sittings import CannotError
from ._contenders import (
    CONTENDERS,
    OURS,
    WIREGUARD,
    End,
    versions,
    why_no_wireguard,
)

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Mapping, Sequence

GIGABYTE = 1e9
HEAD = ("tunnel", "Mbit/s", "CPU s/GB, sending", "CPU s/GB, receiving", "CPU s/GB, both")
TITLE = "One TCP connection through a tunnel"
LEGEND = (
    "Medians, and in brackets how many times ours: more is better for Mbit/s, less for CPU. The "
    "CPU is that of the tunnel's processes, threads and system calls included; iperf3 runs on the "
    "same processors."
)


@dataclass(frozen=True)
class Sitting:
    """What one tunnel did in one round."""

    mbit: float
    sending: float
    receiving: float

    @property
    def both(self) -> float:
        """CPU seconds for each gigabyte, at both ends together."""
        return self.sending + self.receiving


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command's options."""
    parser = make_parser(
        "tests.benchmarks.tunnels",
        "The tunnel of docs/examples beside wireguard-go.",
        "fewer and shorter rounds",
    )
    parser.add_argument("--rounds", type=int, help="of each tunnel (5; quick: 2)")
    parser.add_argument("--seconds", type=int, help="of each round (5; quick: 1)")
    add_outputs(parser)
    return fill_in(parser.parse_args(arguments), rounds=(5, 2), seconds=(5, 1))


def why_nothing() -> str | None:
    """Why nothing can be measured here, or `None`."""
    if sys.platform != "linux":
        return "TUN devices with offloads are Linux's"
    for program in ("iperf3", "ping"):
        if shutil.which(program) is None:
            return f"{program} is not installed"
    if reason := netns.why_no_network():
        return reason
    try:
        os.close(os.open("/dev/net/tun", os.O_RDWR))
    except OSError as error:
        return f"/dev/net/tun cannot be opened: {error.strerror}"
    return None


def iperf3(near: End, far: End, seconds: int) -> dict[str, Any]:
    """One connection from the near end to the far one; what the client says at its end."""
    command = ["iperf3", "--server", "--one-off", "--forceflush", "--bind", far.inside]
    with far.place:
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    with server:
        try:
            assert server.stdout is not None
            while "listening" not in server.stdout.readline():
                if server.poll() is not None:
                    raise CannotError("iperf3's server ended")
            command = ["iperf3", "--client", far.inside, "--json", "--time", str(seconds)]
            with near.place:
                done = subprocess.run(command, capture_output=True, text=True, check=False)
        finally:
            server.kill()
    report: dict[str, Any] = json.loads(done.stdout)
    if "error" in report:
        raise CannotError(f"iperf3: {report['error']}")
    return report


def sit(name: str, near: End, far: End, seconds: int) -> Sitting:
    """One round of a tunnel: started, warmed up by a short connection, measured, ended."""
    with tempfile.TemporaryDirectory() as directory:
        with CONTENDERS[name](near, far, Path(directory)) as running:
            command = ["ping", "-n", "-c", "1", "-w", "20", far.inside]
            if subprocess.run(command, capture_output=True, check=False).returncode:
                raise CannotError("no ping is answered through it")
            iperf3(near, far, 1)
            before = running.cpu_ns()
            received = iperf3(near, far, seconds)["end"]["sum_received"]
            used = [now - then for now, then in zip(running.cpu_ns(), before, strict=True)]
    sending, receiving = (ns / 1e9 / (received["bytes"] / GIGABYTE) for ns in used)
    return Sitting(received["bits_per_second"] / 1e6, sending, receiving)


def measure(
    near: End, far: End, names: Iterable[str], rounds: int, seconds: int, left_out: dict[str, str]
) -> dict[str, list[Sitting]]:
    """All in turn, round by round. What a contender cannot is put into `left_out`."""
    sittings: dict[str, list[Sitting]] = {name: [] for name in names}
    for turn in range(rounds):
        for name in [name for name in sittings if name not in left_out]:
            progress(f"{name}, round {turn + 1}")
            try:
                sittings[name].append(sit(name, near, far, seconds))
            except CannotError as error:
                left_out[name] = str(error)
    progress("")
    return {name: each for name, each in sittings.items() if each and name not in left_out}


def rows(results: Mapping[str, Sequence[Sitting]]) -> list[list[str]]:
    """The table's lines."""

    def medians(name: str) -> list[float]:
        columns = ("mbit", "sending", "receiving", "both")
        return [
            statistics.median(getattr(sitting, column) for sitting in results[name])
            for column in columns
        ]

    ours = medians(OURS) if OURS in results else None
    lines = []
    for name in results:
        figures = medians(name)
        cells = [number(round(figures[0])), *map(number, figures[1:])]
        if ours and name != OURS:
            cells = [
                f"{cell} ({figure / own:.2f}x)" for cell, figure, own in zip(cells, figures, ours)
            ]
        lines.append([name, *cells])
    return lines


def as_rst(
    machine: Mapping[str, str],
    results: Mapping[str, Sequence[Sitting]],
    left_out: Mapping[str, str],
) -> str:
    """The table for the documentation, with the machine that it is from."""
    notes = [f"{name} was not measured: {reason}" for name, reason in left_out.items()]
    return rst_document(machine, LEGEND, [(TITLE, HEAD, rows(results))], notes)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write."""
    options = parse(arguments)
    began = time.monotonic()
    if reason := why_nothing():
        print(f"Nothing is measured: {reason}.")
        return 0
    left_out: dict[str, str] = {}
    if reason := why_no_wireguard():
        left_out[WIREGUARD] = reason
    machine = {**_machine.describe(), **versions()}
    print(*(f"{name}: {value}" for name, value in machine.items()), sep="\n")
    netns.enter_new_network()  # before anything else runs in this process
    place = netns.Namespace()
    netns.veth(place)
    near = End("a", nullcontext(), "10.0.0.1", "10.9.0.1")
    far = End("b", place, "10.0.0.2", "10.9.0.2")
    results = measure(near, far, CONTENDERS, options.rounds, options.seconds, left_out)
    show(TITLE, HEAD, [("", rows(results))], len(HEAD) - 1)
    print(LEGEND, *(f"{name} is not measured: {why}." for name, why in left_out.items()), sep="\n")
    took = time.monotonic() - began
    print(f"{options.rounds} rounds of {options.seconds} s, {took:.0f} s in all")
    if options.json:
        figures = {
            name: [asdict(sitting) for sitting in sittings] for name, sittings in results.items()
        }
        document = {"machine": machine, "left_out": left_out, "tunnels": figures}
        options.json.write_text(json.dumps(document, indent=1), encoding="utf-8")
    if options.rst:
        options.rst.write_text(as_rst(machine, results, left_out), encoding="utf-8")
    return 1 if OURS in left_out else 0


if __name__ == "__main__":
    sys.exit(main())
