# The only rooms that know the operating system. This one picks the backend, and opens the one
# object through which a socket is used.

from __future__ import annotations

import functools
import logging
import os
import sys
from pathlib import Path

from ._interface import BringsIO, SocketIO
from ._portable import PortableIO
from ._sockets import check_socket, switched_off

logger = logging.getLogger("snaptun_trio")

# At the import: who misspells it believes that a faulty offload is off.
for _offload in ("GSO", "GRO"):
    switched_off(_offload)


@functools.cache
def _linux_backend() -> type[SocketIO] | str:
    """The backend for Linux, or why there is none."""
    if sys.platform != "linux":
        return f"recvmmsg and sendmmsg are Linux's, and this is {sys.platform}"
    try:
        from . import _linux, _rows
    except ImportError as error:
        logger.debug("the compiled part was not imported", exc_info=error)
        package = Path(__file__).parents[1]
        if package.with_name("setup.py").exists():
            return (
                "the compiled part is not there: this is a source checkout, in which nothing is "
                "compiled; run the installed package (python -P), or pip install -e it"
            )
        return (
            "the compiled part is not there: it could not be compiled when the package was built, "
            "or SNAPTUN_TRIO_BUILD=no left it out; to build with SNAPTUN_TRIO_BUILD=yes shows why"
        )
    if (call := _rows.forbidden()) is not None:
        return f"this system lacks or forbids {call}"
    return _linux.LinuxIO


def choose_backend() -> tuple[type[SocketIO], str]:
    """The best backend of this system, and why it is that one.

    ``SNAPTUN_TRIO_BACKEND`` in the environment asks for one by name, "linux" or "portable".

    Raises:
      ImportError: the one that is asked for is not there.
    """
    wanted = os.environ.get("SNAPTUN_TRIO_BACKEND", "")
    if wanted not in ("", "linux", "portable"):
        raise ImportError(f"SNAPTUN_TRIO_BACKEND={wanted}: there are linux and portable")
    if wanted == "portable":
        return PortableIO, "SNAPTUN_TRIO_BACKEND asks for it"
    linux = _linux_backend()
    if not isinstance(linux, str):
        return linux, "the compiled part is there, and this system has the calls"
    if wanted:
        raise ImportError(f"SNAPTUN_TRIO_BACKEND=linux: {linux}")
    return PortableIO, linux


def socket_io(sock: object) -> SocketIO:
    """What a receiver or a sender uses a socket through.

    Args:
      sock: a socket, which may bring a `SocketIO` of its own; or a `SocketIO`, which is used as it
        is.

    Raises:
      TypeError, ValueError: it is not a socket we can move datagrams on.
    """
    if isinstance(sock, SocketIO):
        return sock
    # Not `isinstance`, which for a protocol takes 10 us up to Python 3.11.
    if hasattr(sock, "_open_io"):
        brings: BringsIO = sock
        return brings._open_io()
    return choose_backend()[0](check_socket(sock))
