# `relay`: a UDP forwarder in front of a service. This process supervises, shows, and tells
# Prometheus; the datagrams go through workers, which none of that can hold up.

from __future__ import annotations

import signal
from argparse import ArgumentTypeError
from functools import partial
from typing import TYPE_CHECKING, Any

import trio

from .. import UdpRelay
from ._arguments import add_command, host_port, positive, written
from ._relay_totals import RelayTotals
from ._relay_view import View
from ._supervisor import Supervisor, open_sockets

if TYPE_CHECKING:
    import argparse

    from ._arguments import Commands, HostPort
    from ._child import Facts

SETTINGS = (
    *("targets", "duplicate", "max_sessions", "session_rate", "idle_timeout", "grace", "fragment"),
)


def target(text: str) -> HostPort:
    """``HOST:PORT`` that something can be sent to."""
    host, port = host_port(text)
    if host is None or not port:
        raise ArgumentTypeError(f"{text!r}: a target has a host, and a port from 1 to 65535")
    return host, port


def add_parser(commands: Commands) -> None:
    """Add the command."""
    what = (
        "Each client has a socket of its own towards its target, and stays with that target. "
        "SIGTERM or Ctrl-C ends it: new clients are turned away, and what is under way is sent; "
        "a second one ends it at once. With --json a line each second, and a last one."
    )
    example = ":5353 192.0.2.1:53 192.0.2.2:53 --workers 2"
    summary = "forward datagrams to a service, and its answers back"
    add = add_command(commands, "relay", run, summary, what, example).add_argument
    add("listen", metavar="LISTEN", type=host_port, help="such as 127.0.0.1:53, [::1]:53 or :53")
    add("targets", metavar="TARGET", nargs="+", type=target, help="such as 192.0.2.1:53")
    seconds: dict[str, Any] = {"metavar": "SECONDS", "type": float}
    number: dict[str, Any] = {"metavar": "N", "type": positive(int)}
    add("--idle-timeout", **seconds, default=60.0, help="to forget a silent client (60)")
    add("--max-sessions", **number, help="a worker's clients (70 %% of its descriptors)")
    add("--session-rate", **number, default=8192, help="a worker's new clients a second (8192)")
    add("--duplicate", action="store_true", help="all to every target; answers are dropped")
    add("--fragment", action="store_true", help="let IP fragment what is larger than the MTU")
    add("--workers", **number, default=1, help="processes that relay (1)")
    add("--grace", **seconds, default=1.0, help="at most, at the end, for answers to come (1)")
    add("--metrics", metavar="HOST:PORT", type=host_port, help="serve Prometheus at /metrics")
    seconds["type"] = positive(float)
    add("--interval", **seconds, default=1.0, help="between two times that it is shown (1)")


def run(options: argparse.Namespace) -> int:
    """Relay until a signal ends it."""
    settings = {name: getattr(options, name) for name in SETTINGS}
    try:
        UdpRelay(None, **settings)
    except (TypeError, ValueError) as error:
        options.error(str(error))
    trio.run(relay, options, {**settings, "interval": min(options.interval, 1.0)})
    return 0


async def relay(options: argparse.Namespace, settings: Facts) -> None:
    """Open everything, run it, and show how it stands until it has ended."""
    from ._metrics import open_metrics

    totals = RelayTotals(options.workers)
    sockets = await open_sockets(options.listen, options.workers, options.fragment)
    supervisor = Supervisor(sockets, totals, settings)
    numbers = ((len(options.targets), "target"), (options.workers, "worker"))
    how_many = ", ".join(f"{number} {noun}{'s' * (number > 1)}" for number, noun in numbers)
    head = f"relaying on {written(sockets[0].getsockname())} to {how_many}"
    with open_metrics(options.metrics, totals) as told:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stop_on_signal, supervisor)
            nursery.start_soon(supervisor.run)
            await supervisor.begun.wait()
            view, final = View(head + told, totals, options.json), False
            while not final:
                final = supervisor.ended.is_set()
                news, supervisor.news = supervisor.news, []
                show = partial(view.show, news, final)
                await trio.to_thread.run_sync(show, abandon_on_cancel=True)  # terminals may be slow
                with trio.move_on_after(options.interval):
                    await supervisor.ended.wait()
            nursery.cancel_scope.cancel(reason="it has ended")


async def stop_on_signal(supervisor: Supervisor) -> None:
    """Stop at the first signal; the next one ends the program."""
    signals = [signal.SIGTERM]
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as a shell's background job has it
        signals.append(signal.SIGINT)
    with trio.open_signal_receiver(*signals) as received:
        await anext(received)
        supervisor.stop()
