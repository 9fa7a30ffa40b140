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
def _linux_backend() -> Backend | str:
    """The backend for Linux, or why there is none."""
    if sys.platform != "linux":
        return f"recvmmsg and sendmmsg are Linux's, and this is {sys.platform}"
    try:
        from . import _linux, _rows
    except ImportError as error:
        return f"the compiled part is not there, as without a C compiler ({error.msg})"
    if (call := _rows.forbidden()) is not None:
        return f"this system lacks or forbids {call}"
    return _linux.LinuxBackend()


def choose_backend() -> tuple[Backend, str]:
    """The best backend of this system, and why it is that one.

    ``SNAPTUN_TRIO_BACKEND`` in the environment asks for one by name, "linux" or "portable".

    Raises:
      ImportError: the one that is asked for is not there.
    """
    wanted = os.environ.get("SNAPTUN_TRIO_BACKEND", "")
    if wanted not in ("", "linux", "portable"):
        raise ImportError(f"SNAPTUN_TRIO_BACKEND={wanted}: there are linux and portable")
    if wanted == "portable":
        return PortableBackend(), "SNAPTUN_TRIO_BACKEND asks for it"
    linux = _linux_backend()
    if not isinstance(linux, str):
        return linux, "the compiled part is there, and this system has the calls"
    if wanted:
        raise ImportError(f"SNAPTUN_TRIO_BACKEND=linux: {linux}")
    return PortableBackend(), linux


def pick_backend() -> Backend:
    """The best backend of this system, see `choose_backend`."""
    return choose_backend()[0]
