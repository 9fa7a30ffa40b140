# Who takes part: how each relay is called and configured, and what is missing where it cannot be.
#
# Each has a configuration that its own documentation would give it for this. Nothing here is about
# measuring.

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

OURS = "snaptun_trio"
HOST = "127.0.0.1"
PROGRAMS = "/usr/sbin:/usr/local/sbin:/sbin"  # where nginx is, and not every user's PATH leads
PATIENCE = 30.0  # seconds for a program that only prints something

NGINX = """\
{load_module}
daemon off;
worker_processes 1;
worker_rlimit_nofile 16384;
pid {directory}/nginx.pid;
error_log {directory}/error.log crit;
events {{
    worker_connections 8192;  # two for each client
    multi_accept on;          # for datagrams: all that wait, and not one for each epoll_wait
}}
stream {{
    access_log off;
    server {{
        listen {listen} udp;
        proxy_pass {target};
        proxy_timeout 60s;
    }}
}}
"""


@dataclass(frozen=True)
class Contender:
    """A relay that can be started."""

    name: str
    command: Callable[[str, str, Path], Sequence[str]]
    """From where to listen, where to relay to and a directory of its own: the command line. It
    writes the files that the command needs."""
    missing: Callable[[], str | None]
    """Why it cannot take part here, if so."""


def find(program: str) -> str | None:
    """Where a program is."""
    return shutil.which(program) or shutil.which(program, path=PROGRAMS)


def said(*command: str) -> str:
    """What a command prints."""
    done = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    return done.stdout


def nginx_module() -> str | None:
    """The line that loads nginx's stream module, empty where it is built in; None without it."""
    nginx = find("nginx")
    if nginx is None:
        return None
    built = said(nginx, "-V")
    if re.search(r"--with-stream(\s|$)", built):
        return ""
    modules = re.search(r"--modules-path=(\S+)", built)
    module = Path(modules[1], "ngx_stream_module.so") if modules else None
    return f"load_module {module};" if module and module.exists() else None


def missing_nginx() -> str | None:
    """Debian has it in two packages."""
    if nginx_module() is not None:
        return None
    return "there is no nginx with the stream module (Debian: nginx, libnginx-mod-stream)"


def nginx(listen: str, target: str, directory: Path) -> Sequence[str]:
    """One worker, beside the master."""
    configuration = directory / "nginx.conf"
    configuration.write_text(
        NGINX.format(load_module=nginx_module(), directory=directory, listen=listen, target=target),
        encoding="utf-8",
    )
    log = str(directory / "error.log")
    return [str(find("nginx")), "-p", str(directory), "-c", str(configuration), "-e", log]


def missing_socat() -> str | None:
    """A package of its own everywhere."""
    return None if find("socat") else "there is no socat (Debian: socat)"


def socat(listen: str, target: str, directory: Path) -> Sequence[str]:
    """A process for each client.

    UDP4-LISTEN looks at the first datagram's source, connects the very socket to it and gives it to
    a child, which relays both ways until nothing comes for -T seconds; the parent opens another
    socket on the port. So sessions are kept. What it cannot do is take clients that come together:
    between the two sockets the port refuses datagrams, and others' datagrams that already wait in
    the first are relayed as this client's. UDP4-RECVFROM has a process for each datagram and no
    sessions; UDP4-DATAGRAM and UDP4-RECV have one peer or no answers.
    """
    host, port = listen.rsplit(":", 1)
    return [
        str(find("socat")),
        "-T60",
        f"UDP4-LISTEN:{port},bind={host},fork,reuseaddr",
        f"UDP4:{target}",
    ]


def missing_module(module: str) -> str | None:
    """A package that pip installs."""
    return None if find_spec(module) else f"{module} is not installed"


def python(program: str, *options: str) -> Callable[[str, str, Path], Sequence[str]]:
    """A program of this directory, that takes ports."""
    path = str(Path(__file__).with_name(program))

    def command(listen: str, target: str, directory: Path) -> Sequence[str]:
        ports = (address.rsplit(":", 1)[1] for address in (listen, target))
        return [sys.executable, "-P", path, *options, *ports]

    return command


def protocols(loop: str, kind: str, missing: Callable[[], str | None]) -> Contender:
    """The relay of asyncio protocols."""
    return Contender(loop, python("_peer_protocols.py", loop, kind), missing)


def missing_ours() -> str | None:
    """The command came after the library."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", OURS, "relay", "--help"],
        capture_output=True,
        check=False,
        timeout=PATIENCE,
    )
    return f"this {OURS} has no command relay" if done.returncode else None


def ours(listen: str, target: str, directory: Path) -> Sequence[str]:
    """As a user would call it."""
    return [sys.executable, "-P", "-m", OURS, "relay", listen, target]


def from_option(option: str) -> Contender:
    """A relay of the user's: `NAME=COMMAND`, with {listen} and {target} in it."""
    name, _, line = option.partition("=")
    words = shlex.split(line)
    if not name or not words:
        raise ValueError(f"not NAME=COMMAND: {option}")

    def command(listen: str, target: str, directory: Path) -> Sequence[str]:
        places = {"{listen}": listen, "{target}": target}
        return [re.sub(r"\{\w+\}", lambda m: places.get(m[0], m[0]), word) for word in words]

    return Contender(name, command, lambda: None)


CONTENDERS = (
    Contender(OURS, ours, missing_ours),
    Contender("nginx", nginx, missing_nginx),
    Contender("socat", socat, missing_socat),
    protocols("asyncio", "plain", lambda: None),
    protocols("uvloop", "plain", lambda: missing_module("uvloop")),
    Contender("trio.socket", python("_peer_trio_socket.py"), lambda: None),
)
# Those that add a byte to what clients send, and take one off what comes back.
WITH_A_PROTOCOL = (
    Contender(OURS, python("_ours_protocol.py"), lambda: None),
    protocols("asyncio", "header", lambda: None),
    protocols("uvloop", "header", lambda: missing_module("uvloop")),
)


def versions(contenders: Sequence[Contender]) -> dict[str, str]:
    """Of those that are no Python packages."""
    options = {"nginx": "-v", "socat": "-V"}
    found = {}
    for contender in contenders:
        program = find(contender.name) if contender.name in options else None
        if program:
            version = re.search(
                r"version:? (?:nginx/)?([\d.]+)", said(program, options[contender.name])
            )
            found[contender.name] = version[1] if version else "?"
    return found


def choose(
    extra: Sequence[Contender] = (), among: Sequence[Contender] = CONTENDERS
) -> tuple[list[Contender], list[str]]:
    """Those that can take part here, and a line for each that cannot.

    One of the user's takes the place of ours if it is called so.
    """
    names = {contender.name for contender in extra}
    everyone = [*extra, *(each for each in among if each.name not in names)]
    reasons = {contender: contender.missing() for contender in everyone}
    return (
        [contender for contender, reason in reasons.items() if reason is None],
        [f"{each.name} is left out: {reason}" for each, reason in reasons.items() if reason],
    )
