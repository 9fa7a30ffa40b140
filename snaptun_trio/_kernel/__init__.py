# The only rooms that know the operating system. This one picks the backend.

from __future__ import annotations

import functools
import os
import sys
from typing import TYPE_CHECKING

from ._portable import PortableBackend

if TYPE_CHECKING:
    from ._interface import Backend


@functools.cache
def _linux_backend() -> Backend | None:
    if sys.platform != "linux" or sys.implementation.name != "cpython":
        return None
    from . import _linux

    return _linux.LinuxBackend() if _linux.available() else None


def pick_backend() -> Backend:
    """The best backend of this system.

    ``SNAPTUN_TRIO_BACKEND=portable`` in the environment asks for the one that needs only the
    standard library.
    """
    linux = None if os.environ.get("SNAPTUN_TRIO_BACKEND") == "portable" else _linux_backend()
    return PortableBackend() if linux is None else linux
