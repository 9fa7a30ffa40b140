"""How many workers this process may keep busy: python cpus.py"""

from __future__ import annotations

import math
import os
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")  # in a container this is its own


def cpus(cgroup: Path = CGROUP) -> int:
    """The processors that affinity and the quota (cgroup v2) leave, at least one."""
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    try:
        quota, period = (cgroup / "cpu.max").read_text(encoding="ascii").split()
    except OSError:  # no cgroup v2, or the root of it, which has no limit
        quota, period = "max", "100000"
    allowed = math.inf if quota == "max" else int(quota) / int(period)
    return max(1, int(min(there or 1, allowed)))


if __name__ == "__main__":
    print(cpus())
