"""Shows which of the kernel's UDP counters move, each second: python drops.py"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from pathlib import Path

NET = Path("/proc/net")  # of the network namespace of this process
LOSSES = ("NoPorts", "InErrors", "RcvbufErrors", "SndbufErrors", "InCsumErrors", "MemErrors")


def counters(net: Path = NET) -> Counter[str]:
    """What may mean a loss, of IPv4 (``Udp``) and IPv6 (``Udp6``)."""
    names, values = [
        line.split()[1:]
        for line in (net / "snmp").read_text(encoding="ascii").splitlines()
        if line.startswith("Udp:")
    ]
    found = {f"Udp{name}": int(value) for name, value in zip(names, values)}
    with contextlib.suppress(FileNotFoundError):  # no IPv6
        lines = (net / "snmp6").read_text(encoding="ascii").splitlines()
        found |= {name: int(value) for name, value in map(str.split, lines)}
    wanted = [f"{family}{name}" for family in ("Udp", "Udp6") for name in LOSSES]
    return Counter({name: found[name] for name in wanted if name in found})


def main() -> None:
    before = counters()
    while True:
        time.sleep(1)
        now = counters()
        for name, count in (now - before).items():
            print(f"{name} +{count}", flush=True)
        before = now


if __name__ == "__main__":
    main()
