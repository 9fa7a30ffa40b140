# open_udp_socket: sockets by name, for servers, clients and workers.
#
# Checks what was asked for, has names resolved, and decides which addresses are tried. What is done
# to a socket is in `_kernel/_sockets`. This file must not know what is moved through it.

from __future__ import annotations

import errno
import socket
from collections.abc import Iterable
from ipaddress import ip_address
from typing import TYPE_CHECKING, TypeAlias

import trio

from ._brief import brief
from ._kernel._sockets import SocketOptions, adopt_socket, can_reach, open_socket
from ._train import check_address, check_flags, check_int

if TYPE_CHECKING:
    from ._train import Address

# What a socket asks for, in bytes; the kernel caps it (net.core.rmem_max, wmem_max).
# The default of 212 992 holds four trains of 50 x 1200 bytes on the way in. On the way out it is
# used up by 256 small datagrams to one absent neighbour, and then nobody is served for 3 seconds.
DEFAULT_BUFFER = 4 << 20

Local: TypeAlias = "tuple[str | None, int] | Address | int | None"
# What says that there is no IPv6, and not that something else is wrong.
_NO_IPV6 = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL, errno.EPROTONOSUPPORT)
_LARGEST = 2**30 - 1  # the kernel doubles it, in an int


async def open_udp_socket(
    local: Local = None,
    *,
    remote: Address | None = None,
    reuse_port: bool = False,
    receive_buffer: int = DEFAULT_BUFFER,
    send_buffer: int = DEFAULT_BUFFER,
    fragment: bool = False,
) -> trio.socket.SocketType:
    """Open a UDP socket, bound always, which is the caller's to close.

    Names are resolved here, once, by trio. Where one has several addresses the next is tried when
    one fails. Always a checkpoint; if cancelled, or if it fails, nothing is left open.

    Args:
      local: where to receive.

        * ``(host, port)``, port 0 for any free one. ``"::"`` takes IPv4 as well, whose peers have
          addresses like ``::ffff:192.0.2.1`` then. The host `None` is every address of the machine:
          ``"::"`` where it has IPv6, else ``"0.0.0.0"``; with ``remote`` the one of its family.
        * `None`: the same as ``(None, 0)``.
        * An `int` is a **file descriptor** that was inherited, not a port (systemd hands over
          sockets from 3 on, ``LISTEN_FDS`` of them). It is adopted, not duplicated, so closing the
          socket closes it; a duplicate would go on receiving unread. It is made non-blocking and
          close-on-exec. If this fails it stays open.
      remote: ``(host, port)`` to connect to: only its datagrams are received then, and `None` as an
        address sends to it. It must be of the family of ``local``, or ``local`` be ``"::"``.
      reuse_port: let several processes of one user share the port (SO_REUSEPORT). All of them must
        ask for it. See :doc:`workers` for what happens to peers when one comes or goes.
      receive_buffer: SO_RCVBUF in bytes, 1 to 2**30 - 1; the kernel may grant less, and what the
        socket has already is never made less.
      send_buffer: SO_SNDBUF, likewise.
      fragment: let IP fragment what is over the MTU, which a `UdpBatchSender` forbids otherwise. A
        sender on this socket segments nothing (its ``gso`` is `False`), and sends each datagram as
        a message of its own. For programs that cannot choose their sizes; see :doc:`tuning`.

    Raises:
      OSError: a name is not known (`socket.gaierror`), or the system refused: the message says
        which argument and what was tried.
      TypeError: an argument has the wrong type.
      ValueError: a number is out of its range, the families do not fit, the descriptor is no bound
        UDP socket, or this system has no SO_REUSEPORT.
    """
    options = checked_options(reuse_port, receive_buffer, send_buffer, fragment)
    check_local(local, reuse_port=reuse_port)
    check_where("remote", remote)
    await trio.lowlevel.checkpoint()
    remotes = [] if remote is None else await resolve("remote", remote)
    if isinstance(local, int):
        return adopt_socket(local, remotes, options)
    host, port = (None, 0) if local is None else local[:2]
    if local is None or host is None:
        pairs = _on_every_address(port, remotes)
    else:
        pairs = _pairs(await resolve("local", local), remotes)
        if not pairs:
            raise ValueError(
                f"local={brief(local)} and remote={brief(remote)} are of different families"
            )
    # From here on nothing waits, so no cancellation can leave a socket behind.
    tried: list[str] = []
    for here, there in pairs:
        tried.append(f"{here}" if there is None else f"{here} to {there}")
        try:
            return open_socket(here, there, options)
        except OSError as error:
            last = error
            if host is None and there is None and error.errno not in _NO_IPV6:
                break  # half of what was asked for would be no answer
    if len(tried) == 1:
        raise last
    raise OSError(last.errno, f"{last.strerror}; tried {', '.join(tried)}") from None


def refuse_options(**options: tuple[object, object]) -> None:
    """For those that take a socket as well: with one, its options are its owner's.

    Args:
      options: of each what was given, and the default.

    Raises:
      ValueError: one is not the default.
    """
    for name, (value, default) in options.items():
        if value != default:
            raise ValueError(
                f"{name}={brief(value)}: a socket that is given is taken as its owner set it up"
            )


def checked_options(
    reuse_port: bool, receive_buffer: int, send_buffer: int, fragment: bool
) -> SocketOptions:
    """What a socket of our own is opened with, looked at before it is.

    Raises:
      TypeError, ValueError: see `open_udp_socket`.
    """
    check_flags(reuse_port=reuse_port, fragment=fragment)
    check_int("receive_buffer", receive_buffer, 1, _LARGEST)
    check_int("send_buffer", send_buffer, 1, _LARGEST)
    if reuse_port and not hasattr(socket, "SO_REUSEPORT"):
        raise ValueError("reuse_port=True: this system has no SO_REUSEPORT")
    return SocketOptions(reuse_port, receive_buffer, send_buffer, fragment)


def check_where(name: str, where: object) -> None:
    """Make sure that an argument looks like an address, or for ``local`` like a descriptor."""
    if where is None:
        return
    if name == "local" and isinstance(where, int):
        check_int("a file descriptor", where, 0, 2**31 - 1)
        return
    if not isinstance(where, tuple):
        kinds = "(host, port), a file descriptor or None" if name == "local" else "(host, port)"
        raise TypeError(f"{name} is {kinds}, not {brief(where)}")
    if name == "local" and len(where) == 2 and where[0] is None:
        where = ("0.0.0.0", where[1])
    try:
        check_address(where)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{name}={brief(where)}: {error}") from None
    if not where[0]:
        raise ValueError(f"{name}={brief(where)}: the host is empty; None is every address")
    if name != "local" and not where[1]:
        raise ValueError(f"{name}={brief(where)}: nothing can be sent to port 0")


def check_local(local: Local, *, reuse_port: bool) -> None:
    """Make sure that this says where to receive, and can share its port if it is to.

    Raises:
      TypeError, ValueError: see `open_udp_socket`.
    """
    check_where("local", local)
    if isinstance(local, int) and reuse_port:
        raise ValueError(f"reuse_port=True: the socket of local={local} is bound already")


def checked_targets(targets: Iterable[Address]) -> tuple[Address, ...]:
    """The targets of a relay: each looks like an address, and none stands there twice.

    Raises:
      TypeError, ValueError: that is not so, or there is none.
    """
    one = isinstance(targets, tuple) and targets and isinstance(targets[0], str)
    if one or isinstance(targets, str) or not isinstance(targets, Iterable):
        raise TypeError(f"targets is an iterable of (host, port), not {brief(targets)}")
    found = tuple(targets)
    if not found:
        raise ValueError("a relay needs at least one target")
    known = set()
    for target in found:
        if target is None:
            raise TypeError("a target is (host, port), not None")
        check_where("target", target)
        if (spelled := _spelled(target)) in known:
            raise ValueError(f"target={brief(target)} is given twice")
        known.add(spelled)
    return found


def _spelled(where: Address) -> tuple[object, ...]:
    """The same for all spellings of an address that are known to be one without a look-up."""
    host, port, *rest = where
    try:
        numeric = ip_address(host)
        host = str(getattr(numeric, "ipv4_mapped", None) or numeric)
    except ValueError:  # a name
        host = host.lower()
    return host, port, *(rest or (0, 0))


async def resolve(name: str, where: tuple[object, ...]) -> list[Address]:
    """The numeric addresses of a host, each once, in the resolver's order."""
    host, port = where[:2]
    assert isinstance(host, str)
    assert isinstance(port, int)
    try:
        found = await trio.socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)
    except socket.gaierror as error:
        number = error.errno or socket.EAI_FAIL
        raise socket.gaierror(number, f"{error.strerror}: {name}={brief(where)}") from None
    except ValueError:  # what is no name for the IDNA codec, or has a NUL in it
        raise ValueError(f"{name}={brief(where)}: this is no host name") from None
    addresses: list[Address] = []
    for family, _, _, _, address in found:
        if family == socket.AF_INET6 and len(address) == 4:
            addresses.append((*address[:2], *(where[2:] or address[2:])))  # type: ignore[arg-type]
        elif family == socket.AF_INET:
            addresses.append((str(address[0]), int(address[1])))
    return list(dict.fromkeys(addresses))


def _on_every_address(port: int, remotes: list[Address]) -> list[tuple[Address, Address | None]]:
    if not remotes:
        return [(("::", port), None), (("0.0.0.0", port), None)]
    return [(("::" if ":" in to[0] else "0.0.0.0", port), to) for to in remotes]


def _pairs(locals_: list[Address], remotes: list[Address]) -> list[tuple[Address, Address | None]]:
    if not remotes:
        return [(here, None) for here in locals_]
    return [(here, to) for to in remotes for here in locals_ if can_reach(here, to)]
