# Every code block of the docs, README and docstrings is run, or read by what reads its kind.
#
# - Python is run: as an example of docs/examples, which it then is to the letter, or here, on a
#   stage that gives it the names that the text around it speaks of.
# - A law between counters is read, and each name in it has to be one of the statistics' fields.
# - Commands for a shell are read by one (`bash -n`). snaptun-trio's are read by its own parser, and
#   nox's sessions have to be there.
# - Units of systemd are read by configparser, and by `systemd-analyze verify` where that is.
# - TOML, JSON and YAML are read by their parsers.
# - "text" is for what is no code.
#
# A block of another kind fails, and so does Python that has no stage.

from __future__ import annotations

import ast
import configparser
import doctest
import inspect
import json
import re
import shlex
import shutil
import socket
import subprocess
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import pytest
import trio
import trio.testing

import snaptun_trio
import snaptun_trio.testing
from snaptun_trio import UdpBatchReceiver, UdpRelay, open_udp_channel
from snaptun_trio.testing import memory_channel_pair

from .code_blocks import MODULES, Block, all_blocks, in_docstrings, in_markdown, in_rst
from .examples import EXAMPLES, ROOT

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

BLOCKS = all_blocks()
SHOWN = {path.read_text(encoding="utf-8") for path in EXAMPLES.glob("*.py")}
NOXFILE = (ROOT / "noxfile.py").read_text(encoding="utf-8")
PATIENCE = 60  # seconds; only a hang takes that long


def of(*languages: str) -> list[Any]:
    """The blocks in these languages, for a test of each."""
    return [pytest.param(block, id=block.id) for block in BLOCKS if block.language in languages]


# -- Python ----------------------------------------------------------------------------------------


async def run(text: str, **names: object) -> dict[str, Any]:
    """Run code as if in an async function, and return its names. Its ports are free ones."""
    text = re.sub(r'("::"|echo), \d+', r"\1, 0", text)
    known: dict[str, Any] = vars(snaptun_trio) | {"trio": trio, "socket": socket} | names
    code = compile(text, "<block>", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    result = eval(code, known)
    if code.co_flags & inspect.CO_COROUTINE:
        await result
    return known


async def a_pool_for_many(text: str) -> None:
    with trio.socket.socket(type=socket.SOCK_DGRAM) as one:
        await one.bind(("127.0.0.1", 0))
        names = await run(text, sockets=[one])
        assert [receiver.socket for receiver in names["receivers"]] == [one]


async def a_receive_buffer(text: str) -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        before = sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
        await run(text, sock=sock)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) > before


async def a_relay_with_workers(text: str) -> None:
    relay = (await run(text))["relay"]
    assert isinstance(relay, UdpRelay)


async def a_running_relay(text: str) -> None:
    said: list[object] = []
    with trio.CancelScope() as scope:

        def tell(*words: object) -> None:
            said.extend(words)
            scope.cancel()  # the block itself would relay for ever

        await run(text, print=tell)
    assert said[:-1] == ["relaying on port"]
    assert isinstance(said[-1], int)


async def a_group_in_a_loop(text: str) -> None:
    said: list[object] = []
    with trio.socket.socket(type=socket.SOCK_DGRAM) as sock, trio.CancelScope() as scope:
        await sock.bind(("127.0.0.1", 0))

        def tell(*words: object) -> None:
            said.extend(words)
            scope.cancel()

        with UdpBatchReceiver(sock) as receiver:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(lambda: run(text, receivers=[receiver], print=tell))
                await trio.testing.wait_all_tasks_blocked()
                receiver.close()  # so that the group has something to report
    assert said[0] is receiver


async def an_echo_server(text: str) -> None:
    async def serve(handler: object, port: int) -> None:
        """The real one, but that it is told when it listens, and ended after an echo."""
        async with trio.open_nursery() as nursery:
            server = await nursery.start(snaptun_trio.serve_udp, handler, port)
            async with await open_udp_channel("127.0.0.1", server.local_address[1]) as client:
                await client.send_packet(b"hello")
                echoes.append(await client.receive_packet())
            nursery.cancel_scope.cancel()

    echoes: list[bytes] = []
    await run(text, serve_udp=serve)
    assert echoes == [b"hello"]


async def answers_that_are_not_waited_for(text: str) -> None:
    def answer_to(packet: bytes) -> bytes | None:
        return None if packet == b"junk" else packet.upper()

    answer = (await run(text, answer_to=answer_to))["answer"]
    client, channel = memory_channel_pair()
    await client.send_packets([b"one", b"junk", b"two"])
    client.close()
    await answer(channel)
    assert channel.statistics().datagrams_sent == 2


# By the first line of the block.
STAGES: dict[str, Callable[[str], Awaitable[None]]] = {
    "pool = PacketBufPool()": a_pool_for_many,
    "sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * 1024 * 1024)": a_receive_buffer,
    'relay = UdpRelay(("::", 53), [("192.0.2.1", 53)], workers=4)': a_relay_with_workers,
    'relay = UdpRelay(("::", 5353), [("192.0.2.1", 53)])': a_running_relay,
    "with UdpReceiverGroup(receivers) as group:": a_group_in_a_loop,
    "async def echo(channel: UdpChannel) -> None:": an_echo_server,
    "async def answer(channel: UdpChannel) -> None:": answers_that_are_not_waited_for,
}


def fields_of(owner: str) -> set[str]:
    """The names that a law of this class may speak of. What a target adds to is its relay's."""
    classes: list[type] = [getattr(snaptun_trio, owner)]
    if owner == "RelayTarget":
        classes.append(snaptun_trio.RelayStatistics)
    return {field.name for cls in classes if attrs.has(cls) for field in attrs.fields(cls)}


def is_law(text: str) -> bool:
    """Whether it is nothing but comparisons."""
    statements = ast.parse(text).body
    return all(isinstance(s, ast.Expr) and isinstance(s.value, ast.Compare) for s in statements)


def check_law(block: Block) -> None:
    """Each name in it is a field, or what the law itself names."""
    nodes = list(ast.walk(ast.parse(block.text)))
    names = {node.id: node.ctx for node in nodes if isinstance(node, ast.Name)}
    bound = {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    unknown = names.keys() - bound - {"sum"} - fields_of(block.owner)
    assert not unknown, f"{block.owner} has no {unknown}"


async def check_python(block: Block) -> None:
    """Run it, unless it is an example that has a test of its own, or a law."""
    if block.text in SHOWN:
        return
    if block.owner and is_law(block.text):
        check_law(block)
        return
    stage = STAGES.get(block.text.splitlines()[0])
    assert stage is not None, "nothing runs this: make it a file of docs/examples, or a stage here"
    with trio.fail_after(PATIENCE):
        await stage(block.text)


@pytest.mark.parametrize("block", of("python"))
async def test_python_runs(block: Block) -> None:
    await check_python(block)
    await trio.lowlevel.checkpoint()


@pytest.mark.parametrize("block", [b for b in of("") if b.values[0].owner])
async def test_blocks_of_docstrings_run(block: Block) -> None:
    if '"::"' in block.text and not has_ipv6():
        pytest.skip("this machine has no IPv6")
    await check_python(block)
    await trio.lowlevel.checkpoint()


def test_each_stage_has_its_block() -> None:
    assert STAGES.keys() <= {block.text.splitlines()[0] for block in BLOCKS}


def has_ipv6() -> bool:
    """Whether a socket can be bound to an address of it."""
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


def test_what_docstrings_show_of_a_session_is_true() -> None:
    runner = doctest.DocTestRunner()
    names = dict(vars(snaptun_trio))
    for package in (snaptun_trio, snaptun_trio.testing):
        for name in package.__all__:
            value = getattr(package, name)
            if inspect.isclass(value) or inspect.isfunction(value):
                for test in doctest.DocTestFinder().find(value, name, module=False, globs=names):
                    if "_member_type_" not in test.name:  # int's own, which an enum leads to
                        runner.run(test)
    # What is not public has no reader, and so no examples that nothing would run.
    written = sum(path.read_text(encoding="utf-8").count("    >>> ") for path in MODULES)
    assert runner.summarize() == (0, written)


# -- what is not Python ----------------------------------------------------------------------------


def commands(block: Block) -> str:
    """The commands of a block, as a script. In a session they stand behind a prompt."""
    if block.language == "sh":
        return block.text
    typed = re.findall(r"^[$#] ((?:.*\\\n)*.*)$", block.text, re.MULTILINE)
    assert typed, "a session without a prompt"
    return "\n".join(typed) + "\n"


def words_of(script: str) -> Iterator[list[str]]:
    """The words of each simple command, without the environment before them."""
    for line in script.replace("\\\n", " ").splitlines():
        for simple in re.split(r"&&|\|\||[|;&]", line):
            words = shlex.split(simple, comments=True)
            while words and re.match(r"\w+=", words[0]):
                del words[0]
            if words:
                yield words


def check_commands(script: str) -> None:
    """Have a shell read a script, and the parsers of our own commands theirs."""
    shell = shutil.which("bash") or "sh"
    result = subprocess.run(
        [shell, "-n"], input=script, capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stderr) == (0, "")
    for program, *arguments in words_of(script):
        if program.endswith("snaptun-trio") and "--help" not in arguments:
            main = pytest.importorskip("snaptun_trio._cli._main")
            main.parse(arguments)
        elif program.endswith("nox") and "-s" in arguments:
            for session in arguments[arguments.index("-s") + 1 :]:
                if session.startswith("-"):
                    break
                assert re.search(
                    rf"^def {session.replace('-', '_')}\(session", NOXFILE, re.MULTILINE
                )


@pytest.mark.parametrize("block", of("sh", "console"))
def test_commands_are_commands(block: Block) -> None:
    check_commands(commands(block))


def check_unit(text: str) -> configparser.RawConfigParser:
    """Read a unit of systemd, in which a key may stand twice."""
    unit = configparser.RawConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read_string(text)
    assert unit.sections()
    return unit


@pytest.mark.parametrize("block", of("ini"))
def test_units_can_be_read(block: Block) -> None:
    check_unit(block.text)


@pytest.mark.parametrize(
    "page", sorted({block.path for block in BLOCKS if block.language == "ini"})
)
def test_systemd_has_nothing_to_say_of_units(page: Path, tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("there is no systemd-analyze")
    units: list[str] = []
    for block in BLOCKS:
        kinds = [kind for kind in ("Socket", "Service") if f"[{kind}]" in block.text]
        if block.path == page and block.language == "ini" and kinds:
            # A socket starts the service of its name, and what a service starts has to be there.
            text = block.text.replace("\\\n", " ")
            text = re.sub(r"\b[\w-]+\.socket\b", "example.socket", text)
            text = re.sub(r"^(Exec\w+)=.*", r"\1=/bin/true", text, flags=re.MULTILINE)
            units.append(str(tmp_path / f"example.{kinds[0].lower()}"))
            Path(units[-1]).write_text(text, encoding="utf-8")
    if not units:
        pytest.skip("no units, only other files of that form")
    result = subprocess.run(
        [analyze, "verify", "--man=no", *units], capture_output=True, text=True, check=False
    )
    said = [line for line in result.stderr.splitlines() if str(tmp_path) in line]
    assert said == []


def check_data(block: Block) -> None:
    """Have a file of data read by its parser."""
    if block.language == "toml":
        tomllib.loads(block.text)
    elif block.language == "json":
        for line in block.text.splitlines():
            json.loads(line)
    else:
        pytest.importorskip("yaml").safe_load(block.text)


def test_data_can_be_read() -> None:
    for block in BLOCKS:
        if block.language in ("toml", "json", "yaml"):
            check_data(block)


READ = ("python", "sh", "console", "ini", "toml", "json", "yaml", "text")


@pytest.mark.parametrize("block", [pytest.param(block, id=block.id) for block in BLOCKS])
def test_each_block_is_of_a_kind_that_is_read(block: Block) -> None:
    said = f"no language, or one that nothing here reads: {block.language!r}"
    assert block.language in READ or (block.language == "" and block.owner), said


# -- and all of it can fail ------------------------------------------------------------------------


def test_blocks_are_found_wherever_they_stand(tmp_path: Path) -> None:
    (tmp_path / "unit.ini").write_text("[A]\n", encoding="utf-8")
    text = "Some::\n\n   x\n\n.. code-block:: sh\n   :caption: y\n\n   ls\n\n.. code:: z\n\n   q\n"
    text += "\n.. literalinclude:: unit.ini\n\n.. literalinclude:: a.py\n\n.. note::\n\n   n\n"
    found = [(b.line, b.language, b.text) for b in in_rst(tmp_path / "page.rst", text)]
    assert found == [(1, "", "x\n"), (5, "sh", "ls\n"), (10, "code", "q\n"), (14, "ini", "[A]\n")]
    (tmp_path / "page.md").write_text("a\n```sh\nls\n```\n", encoding="utf-8")
    assert [(b.line, b.language, b.text) for b in in_markdown(tmp_path / "page.md")] == [
        (2, "sh", "ls\n")
    ]
    code = 'class A:\n    """One.\n\n    ::\n\n        x = 1\n    """\n'
    (tmp_path / "module.py").write_text(code, encoding="utf-8")
    assert [(b.owner, b.text) for b in in_docstrings(tmp_path / "module.py")] == [("A", "x = 1\n")]


async def test_a_block_that_nothing_runs_or_reads_fails() -> None:
    async def fails(check: Callable[[Block], object], language: str, text: str) -> None:
        with pytest.raises((AssertionError, SystemExit, ValueError, configparser.Error)):
            result = check(Block(ROOT / "page.rst", 1, language, text, "ReceiverStatistics"))
            if inspect.isawaitable(result):
                await result

    await fails(check_python, "python", "print('nobody runs this')\n")
    await fails(check_python, "", "datagrams_received == datagrams_eaten\n")
    await fails(lambda block: check_commands(block.text), "sh", "if true; then\n")
    await fails(lambda block: check_commands(block.text), "sh", "snaptun-trio relay --no-such 1\n")
    await fails(lambda block: check_commands(block.text), "sh", "nox -s no_such_session\n")
    await fails(lambda block: check_unit(block.text), "ini", "ExecStart\n")
    await fails(commands, "console", "ls\n")
    await fails(check_data, "toml", "a = \n")
    await fails(check_data, "json", "{\n")
    await fails(test_each_block_is_of_a_kind_that_is_read, "rust", "fn main() {}\n")
    await trio.lowlevel.checkpoint()
