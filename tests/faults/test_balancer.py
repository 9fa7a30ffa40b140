# Two relay hosts behind a balancer, nft's hashing of the clients' addresses: what the page on many
# machines says becomes of the clients when a relay, or a host, is lost, and when it comes back.
#
#     clients --- balancer --- host 1 --- target
#                        \---- host 2 ---/
#
# Five namespaces. The rules are those of the documentation, and so are the relays.

from __future__ import annotations

import contextlib
import errno
import select
import shutil
import socket
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from .. import ends
from ..examples import EXAMPLES
from ..relaying import COMMAND, ENVIRONMENT
from . import netns

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [
    pytest.mark.slow,
    pytest.mark.own_network,
    pytest.mark.skipif(shutil.which("nft") is None, reason="nft is not installed"),
]

RULES = (EXAMPLES / "howto" / "balancer.nft").read_text(encoding="utf-8")
VIRTUAL, PORT = "192.0.2.53", 53
HOSTS = (1, 2)
CLIENTS = [f"10.0.0.{number}" for number in range(10, 42)]

Answers = dict[str, int | str]


class Site:
    """The balancer is where the thread stands; everything else hangs on it."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self._stack = stack
        self._clients, self._target = netns.Namespace(), netns.Namespace()
        self._hosts = {host: netns.Namespace() for host in HOSTS}
        self._relays: dict[int, subprocess.Popen[str]] = {}
        netns.sysctl("net.ipv4.ip_forward", 1)
        netns.veth(self._clients, near="vc", far_end="eth", near_ip="10.0.0.1", far_ip="10.0.0.2")
        for host, space in self._hosts.items():
            near, far = f"10.0.{host}.1", f"10.0.{host}.2"
            netns.veth(space, near=f"host{host}", far_end="eth", near_ip=near, far_ip=far)
            with space:
                netns.run(f"ip route add default via {near}")
                near, far = f"10.1.{host}.1", f"10.1.{host}.2"
                netns.veth(self._target, near="vt", far_end=f"eth{host}", near_ip=near, far_ip=far)
        with self._clients:
            netns.run("ip route add default via 10.0.0.1")
            for ip in CLIENTS:
                netns.run(f"ip address add {ip}/24 dev eth")
        with self._target:
            self._targets = {self._bound(f"10.1.{host}.2", PORT): host for host in HOSTS}
        self.share_out()
        for host in HOSTS:
            self.start(host)

    def _bound(self, ip: str, port: int = 0) -> socket.socket:
        sock = self._stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        sock.setblocking(False)
        sock.bind((ip, port))
        return sock

    def clients(self) -> dict[str, socket.socket]:
        """A new socket of each client."""
        with self._clients:
            made = {ip: self._bound(ip) for ip in CLIENTS}
            for sock in made.values():
                sock.connect((VIRTUAL, PORT))
        return made

    def share_out(self, *, without: int | None = None) -> None:
        """Load the rules: the buckets of a host that is not there are the other's."""
        rules = RULES
        if without is not None:
            (other,) = set(HOSTS) - {without}
            rules = rules.replace(f"10.0.{without}.2", f"10.0.{other}.2")
        netns.attempt("nft -f -", stdin=rules)

    def start(self, host: int) -> None:
        """Start the relay of a host, as its administrator would."""
        with self._hosts[host]:
            relay = self._stack.enter_context(
                subprocess.Popen(
                    [*COMMAND, f":{PORT}", f"10.1.{host}.2:{PORT}"],
                    env=ENVIRONMENT,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
        self._stack.callback(relay.kill)
        assert relay.stdout is not None
        assert relay.stdout.readline().startswith("relaying on ")
        self._relays[host] = relay

    def kill(self, host: int) -> None:
        """The command and its worker are gone; the host is there."""
        self._relays[host].kill()
        self._relays[host].communicate()  # the worker has stderr as well, until it has ended

    @staticmethod
    def unplug(host: int) -> None:
        """The host is gone."""
        netns.run(f"ip link set host{host} down")

    @staticmethod
    def plug_in(host: int) -> None:
        """It is back."""
        netns.run(f"ip link set host{host} up")
        netns.wait_for_carrier(f"host{host}")

    def ask(self, clients: dict[str, socket.socket], silent: set[str] | None = None) -> Answers:
        """What each client hears: by which host its question came to the target, or an errno.

        Those of whom nothing should be heard ask first: when all others have been answered, there
        is nothing for them.
        """
        silent = silent or set()
        names = {sock: ip for ip, sock in clients.items()}
        for ip in sorted(clients, key=lambda ip: ip not in silent):
            clients[ip].send(b"question")
        heard: Answers = {}
        while len(heard) < len(clients) - len(silent):
            ready, _, _ = select.select([*names, *self._targets], [], [], ends.PATIENCE)
            assert ready, f"nobody answers {set(clients) - set(heard)}"
            for sock in ready:
                if sock in self._targets:
                    _, relay = sock.recvfrom(100)
                    sock.sendto(b"%d" % self._targets[sock], relay)
                    continue
                try:
                    heard[names[sock]] = int(sock.recv(100))
                except OSError as error:
                    heard[names[sock]] = errno.errorcode[error.errno or 0]
        assert not silent & set(heard)
        return heard


@contextlib.contextmanager
def site() -> Iterator[Site]:
    with contextlib.ExitStack() as stack:
        yield Site(stack)


def those_of(host: int, heard: Answers) -> set[str]:
    return {ip for ip, answer in heard.items() if answer == host}


def test_a_client_stays_with_its_host_whatever_its_port() -> None:
    with site() as here:
        first = here.ask(here.clients())
        assert {*first.values()} == {*HOSTS}
        assert here.ask(here.clients()) == first
        here.share_out()  # with a seed in them the rules can be loaded again
        assert here.ask(here.clients()) == first
        # For so many seconds it remembers a question, and a conversation.
        limits = Path("/proc/sys/net/netfilter")
        for name, seconds in (("udp_timeout", 30), ("udp_timeout_stream", 120)):
            assert int((limits / f"nf_conntrack_{name}").read_text("ascii")) == seconds


def test_without_a_seed_the_rules_share_out_anew_when_they_are_loaded_again() -> None:
    with site() as here:
        unseeded = RULES.replace(" seed 0x5eed", "")
        assert unseeded != RULES
        netns.attempt("nft -f -", stdin=unseeded)
        first = here.ask(here.clients())
        netns.attempt("nft -f -", stdin=unseeded)
        assert here.ask(here.clients()) != first  # once in four thousand million times it is


def test_a_relay_that_dies_is_noticed_at_once_and_by_its_own_clients_only() -> None:
    with site() as here:
        clients = here.clients()
        first = here.ask(clients)
        here.kill(1)
        assert here.ask(clients) == {
            ip: "ECONNREFUSED" if host == 1 else host for ip, host in first.items()
        }
        here.start(1)  # and nothing else
        assert here.ask(clients) == first


def test_a_host_that_is_lost_is_silence_for_its_own_clients_until_two_things_are_done() -> None:
    if shutil.which("conntrack") is None:
        pytest.skip("the command conntrack is not installed")
    with site() as here:
        clients = here.clients()
        first = here.ask(clients)
        lost, others = those_of(1, first), those_of(2, first)
        here.unplug(1)
        of_the_others = dict.fromkeys(others, 2)
        assert here.ask(clients, silent=lost) == of_the_others
        here.share_out(without=1)
        # Conversations that have begun go where they went; each question keeps that so.
        assert here.ask(clients, silent=lost) == of_the_others
        assert here.ask(here.clients()) == dict.fromkeys(CLIENTS, 2)
        netns.attempt("conntrack --delete --protonum udp --reply-src 10.0.1.2")
        assert here.ask(clients) == dict.fromkeys(CLIENTS, 2)


def test_a_host_that_comes_back_gets_its_clients_with_their_next_port() -> None:
    with site() as here:
        before = here.clients()
        first = here.ask(before)
        here.unplug(1)
        here.share_out(without=1)
        meanwhile = here.clients()
        assert here.ask(meanwhile) == dict.fromkeys(CLIENTS, 2)
        here.plug_in(1)
        here.share_out()
        assert here.ask(before) == first
        assert here.ask(meanwhile) == dict.fromkeys(CLIENTS, 2)  # what has begun stays
        assert here.ask(here.clients()) == first


def test_a_host_that_is_taken_out_serves_what_has_begun() -> None:
    with site() as here:
        clients = here.clients()
        first = here.ask(clients)
        here.share_out(without=1)
        assert here.ask(clients) == first
        assert here.ask(here.clients()) == dict.fromkeys(CLIENTS, 2)
