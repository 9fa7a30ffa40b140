# The server that answers what it knows, and whose tasks ask for the rest.

from __future__ import annotations

import signal
from functools import partial
from typing import TYPE_CHECKING

import pytest
import trio

from snaptun_trio import open_udp_channel, serve_udp
from snaptun_trio.testing import ScriptedSocket

from . import ends, serving
from .examples import example, first_line, program

if TYPE_CHECKING:
    from snaptun_trio import UdpServer

pytestmark = pytest.mark.usefixtures("backend")


@pytest.mark.core
async def test_dns_cache_asks_once_and_answers_each_client_under_its_own_number() -> None:
    ask, message, cache = example("client").ask, example("dns_message"), example("dns_cache")
    asked: list[bytes] = []

    def answer(question: bytes, _: object) -> bytes:
        asked.append(question)
        reply: bytes = message.answer_to(question)
        return reply

    async with trio.open_nursery() as nursery:
        serve = partial(serve_udp, serving.finish, 0, host="127.0.0.1", answer=answer)
        upstream: UdpServer = await nursery.start(serve)
        known = cache.Cache(*upstream.local_address)
        serve = partial(serve_udp, known.look_up, 0, host="127.0.0.1", answer=known.answer)
        server: UdpServer = await nursery.start(serve)
        questions = [message.question(n, b"www.example.org") for n in (7, 8, 9)]
        for question in questions:
            async with await open_udp_channel(*server.local_address) as client:
                await client.send_packets([b"junk", b"", message.answer_to(question)])
                assert await ask(client, question) == message.answer_to(question)
        assert asked == questions[:1]
        seen = serving.check_law(server.statistics())
        assert (seen.peers_admitted, seen.datagrams_answered) == (1, 11)
        nursery.cancel_scope.cancel()


async def test_dns_cache_forgets(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    message, module = example("dns_message"), example("dns_cache")
    asked: list[bytes] = []

    async def ask(_: object, question: bytes) -> bytes:
        await trio.lowlevel.checkpoint()
        if question[:2] == bytes(2):
            raise trio.TooSlowError
        asked.append(question)
        reply: bytes = message.answer_to(question)
        return reply

    monkeypatch.setattr(module, "ask", ask)
    monkeypatch.setattr(module, "MOST", 2)
    cache = module.Cache("127.0.0.1", 9)
    names = [b"a.example", b"b.example", b"c.example"]
    sock = ScriptedSocket()
    async with serving.server(cache.look_up, port=sock, answer=cache.answer) as served:
        for name in names:
            await served.feed((message.question(1, name), serving.peer(1)))
        await served.feed((message.question(0, b"d.example"), serving.peer(1)))  # gets none
        assert len(asked) == 3
        for number, name in enumerate(reversed(names)):  # the first one is forgotten
            await served.feed((message.question(5, name), serving.peer(2 + number)))
        assert len(asked) == 4
        await trio.sleep(module.FRESH)
        await served.feed((message.question(6, names[2]), serving.peer(1)))
        assert len(asked) == 5
    assert len(sock.sent) == 7


async def test_dns_cache_lets_no_slow_question_hold_up_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Neither of the same client nor of another one; and no more are asked at once than there is
    room for."""
    message, module = example("dns_message"), example("dns_cache")
    asked: list[bytes] = []
    never = trio.Event()

    async def ask(_: object, question: bytes) -> bytes:
        asked.append(question)
        if b"slow" in question:
            await never.wait()
        await trio.lowlevel.checkpoint()
        reply: bytes = message.answer_to(question)
        return reply

    monkeypatch.setattr(module, "ask", ask)
    monkeypatch.setattr(module, "AT_ONCE", 3)
    cache = module.Cache("127.0.0.1", 9)
    slow, fast = (message.question(7, name) for name in (b"slow.example", b"fast.example"))
    sock = ScriptedSocket()
    async with serving.server(cache.look_up, port=sock, answer=cache.answer) as served:
        await served.feed((slow, serving.peer(1)), (fast, serving.peer(1)))
        await served.feed((slow, serving.peer(2)), (fast, serving.peer(2)))
        assert [to for _, to in sock.sent] == [serving.peer(1), serving.peer(2)]
        await served.feed(*[(slow, serving.peer(3))] * 5)
        assert asked.count(slow) == 3
        never.set()
        await trio.testing.wait_all_tasks_blocked()
        assert len(sock.sent) == 9


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT])
async def test_dns_cache_as_a_program(end: signal.Signals) -> None:
    ask, message = example("client").ask, example("dns_message")
    with program("dns_server", "127.0.0.1", "0") as upstream:
        port = first_line(upstream, r"answering on \S+ port (\d+)\n")[1]
        with program("dns_cache", "127.0.0.1", "0", "127.0.0.1", port) as cache:
            here = first_line(cache, r"answering on (\S+) port (\d+)\n")
            async with await open_udp_channel(here[1], int(here[2])) as client:
                for number in range(3):
                    question = message.question(number, b"mail.example.org")
                    with trio.fail_after(ends.PATIENCE):
                        assert await ask(client, question) == message.answer_to(question)
            cache.send_signal(end)
            _, errors = cache.communicate(timeout=ends.PATIENCE)
        assert (cache.returncode, errors) == (0, "")
