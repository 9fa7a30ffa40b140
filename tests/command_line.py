# The command line as a user runs it, in a process of its own, and what such tests share.

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import snaptun_trio

if TYPE_CHECKING:
    from collections.abc import Mapping

PACKAGE_PARENT = Path(snaptun_trio.__file__).resolve().parents[1]
HANG_GUARD_SECONDS = 240
NAMES = ("demo", "bench", "probe", "relay")
EXTRA = ("rich", "prometheus_client")  # what the commands need, and the library does not

linux_only = pytest.mark.skipif(
    sys.platform != "linux", reason="it looks into /proc, or SO_MEMINFO"
)


def run_cli(
    *arguments: str | Path, path: Path | None = None, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run ``python -m snaptun_trio`` with this first on the module search path, if it is given."""
    return subprocess.run(
        [sys.executable, "-P", "-m", "snaptun_trio", *map(str, arguments)],
        env=environment_for(path, environment or {}),
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=HANG_GUARD_SECONDS,
        check=False,
    )


def environment_for(path: Path | None, changes: Mapping[str, str]) -> Mapping[str, str]:
    """The environment of a process that imports the package under test."""
    search = [str(place) for place in (path, PACKAGE_PARENT) if place is not None]
    kept = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    return {
        **kept,
        "PYTHONPATH": os.pathsep.join(search),
        "PYTHONIOENCODING": "utf-8",
        **changes,
    }


def hide(directory: Path, module: str) -> Path:
    """A directory which, on the module search path, hides a module as if it were not there."""
    failure = f"raise ModuleNotFoundError('hidden by a test', name={module!r})\n"
    (directory / f"{module}.py").write_text(failure)
    return directory
