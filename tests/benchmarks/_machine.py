# What the figures were taken on.

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("snaptun_trio", "trio", "anyio", "uvloop", "aiofastnet")


def processor() -> str:
    """The processor's model name."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith(("model name", "Model")):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def describe() -> dict[str, str]:
    """The machine and the versions, name by name."""
    described = {
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "processor": f"{processor()}, {len(os.sched_getaffinity(0))} usable",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
    }
    for package in PACKAGES:
        try:
            described[package] = version(package)
        except PackageNotFoundError:
            continue
    return described
