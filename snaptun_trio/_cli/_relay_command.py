# `relay`: a UDP forwarder in front of a service. All that it does is `UdpRelay`'s, whose workers
# neither a slow terminal nor Prometheus can hold up; this file says what is asked for.

import signal
from argparse import ArgumentTypeError, Namespace
from functools import partial
from typing import Any

import trio

from .. import UdpRelay
from . import _terminal
from ._metrics import open_metrics
from ._relay_view import View
from ._terminal import Commands, HostPort, add_command, host_port, in_words, positive, written

SETTINGS = ("workers", "duplicate", "max_sessions", "session_rate", "idle_timeout", "grace")
OF_SESSIONS = ("max_sessions", "session_rate", "idle_timeout")


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
    add = add_command(commands, "relay", run, summary, what, example)
    add("listen", metavar="LISTEN", type=host_port, help="such as 127.0.0.1:53, [::1]:53 or :53")
    add("targets", metavar="TARGET", nargs="+", type=target, help="such as 192.0.2.1:53")
    seconds: dict[str, Any] = {"metavar": "SECONDS", "type": float}
    number: dict[str, Any] = {"metavar": "N", "type": positive(int)}
    add("--idle-timeout", **seconds, help="to forget a silent client (60)")
    add("--max-sessions", **number, help="a worker's clients (70 %% of its descriptors)")
    add("--session-rate", **number, help="a worker's new clients a second (8192)")
    add("--duplicate", action="store_true", help="all to every target; answers are dropped")
    add("--fragment", action="store_true", help="let IP fragment what is larger than the MTU")
    add("--workers", **number, default=1, help="processes that relay (1)")
    add("--grace", **seconds, help="at most, at the end, for answers to come (1)")
    add("--metrics", metavar="HOST:PORT", type=host_port, help="serve Prometheus at /metrics")
    add("--interval", metavar="SECONDS", type=positive(float), default=1, help="between lines (1)")


def run(options: Namespace) -> int:
    """Relay until a signal ends it."""
    settings = {k: v for k, v in vars(options).items() if k in SETTINGS and v is not None}
    if options.duplicate and not settings.keys().isdisjoint(OF_SESSIONS):
        options.error("with --duplicate there are no sessions, nor a number, rate or time of them")
    try:
        relay = UdpRelay(options.listen, options.targets, fragment=options.fragment, **settings)
    except (TypeError, ValueError) as error:
        options.error(in_words(error).replace("_", "-"))  # as the options are written
    trio.run(run_relay, relay, options)
    return 0


async def run_relay(relay: UdpRelay, options: Namespace) -> None:
    """Run it, and show how it stands until it has ended."""
    stopping, ended = trio.Event(), trio.Event()

    async def stop_on_signal() -> None:  # the next one ends the program
        signals = [signal.SIGTERM]
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as in a shell's background job
            signals.append(signal.SIGINT)
        with trio.open_signal_receiver(*signals) as received:
            await anext(received)
            stopping.set()
            relay.stop()

    def ready() -> bool:
        return not stopping.is_set() and relay.statistics().workers == options.workers

    async def relay_until_stopped(task_status: trio.TaskStatus[UdpRelay]) -> None:
        try:
            await relay.run(task_status=task_status)
        except ValueError as error:  # such as a target that is the relay itself
            raise _terminal.CommandError(str(error)) from None
        ended.set()

    with open_metrics(options.metrics, relay.statistics, ready) as told:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stop_on_signal)
            await nursery.start(relay_until_stopped)
            numbers = {"target": len(relay.targets), "worker": options.workers}
            how_many = ", ".join(f"{n} {noun}{'s' * (n > 1)}" for noun, n in numbers.items())
            head = f"relaying on {written(*relay.local_address)} to {how_many}{told}"
            view, final = View(head, relay.statistics(), options), False
            while not final:
                final = ended.is_set()
                show = partial(view.show, relay.statistics(), final)
                await trio.to_thread.run_sync(show, abandon_on_cancel=True)  # terminals may be slow
                with trio.move_on_after(options.interval):
                    await ended.wait()
            nursery.cancel_scope.cancel(reason="it has ended")
