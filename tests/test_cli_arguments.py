# What arguments of the commands become, what is said of wrong ones, and addresses in either
# direction.

from __future__ import annotations

import errno
import re
import socket
from argparse import ArgumentTypeError
from pathlib import Path

import pytest

from snaptun_trio._cli import _terminal
from snaptun_trio._cli._main import main, parse
from snaptun_trio._cli._terminal import CommandError, in_words

from .command_line import NAMES

ADDRESSES = [
    ("127.0.0.1:53", ("127.0.0.1", 53)),
    ("example.org:65535", ("example.org", 65_535)),
    ("example.org.:1", ("example.org.", 1)),
    ("bücher.example:53", ("bücher.example", 53)),
    ("[::1]:0", ("::1", 0)),
    ("[fe80::1%lo]:53", ("fe80::1%lo", 53)),
    ("[::]:53", ("::", 53)),
    ("*:53", (None, 53)),
]


@pytest.mark.parametrize(("text", "address"), [*ADDRESSES, (":53", (None, 53))])
def test_addresses(text: str, address: tuple[str | None, int]) -> None:
    assert _terminal.host_port(text) == address


@pytest.mark.parametrize(("text", "address"), ADDRESSES)
def test_they_are_written_as_they_are_read(text: str, address: tuple[str | None, int]) -> None:
    assert _terminal.written(*address) == text
    assert _terminal.written(*address, 0, 0) == text, "as a socket of IPv6 has it"


@pytest.mark.parametrize(
    "text",
    [
        *("", ":", "localhost", "[::1]", "[::1:53", "::1", "::1:53", "2001:db8::7]:53"),
        *("[localhost]:53", "[]:53", "x[::1]:53", "[::1]x:53", "[[::1]]:53", "localhost:"),
        *("localhost:dns", "localhost:65536", "localhost:100000", "localhost:-1", "localhost:+1"),
        *("localhost:1_0", "localhost: 1", "localhost:1 ", "localhost:1\n", "localhost:²"),
    ],
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ArgumentTypeError) as told:
        _terminal.host_port(text)
    words = str(told.value)
    assert words.startswith(
        f"{text!r} is not HOST:PORT, such as 192.0.2.1:53, or [::1]:53 for IPv6"
    )
    assert words.endswith("a port is 0 to 65535")


@pytest.mark.parametrize("host", [".", "a..b", "a" * 64, "ü" * 60, "\udcff"])
@pytest.mark.parametrize("arguments", ["relay :0 HOST:53", "relay :0 t:1 --metrics HOST:53"])
def test_a_name_that_can_be_no_hosts_is_a_mistake_too(
    host: str, arguments: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments.replace("HOST", host).split())
    assert ended.value.code == 2
    assert "snaptun-trio relay: error: argument " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (CommandError("it is\n raining"), "it is raining"),
        (ValueError(), "ValueError"),
        (OSError(), "OSError"),
        (OSError("no address is known of ('a.b', 53)"), "no address is known of a.b:53"),
        (
            OSError(errno.EADDRINUSE, "Address already in use: local=('127.0.0.1', 53)"),
            "address already in use: 127.0.0.1:53",
        ),
        (
            OSError(errno.EADDRINUSE, "In use; tried ('::', 53, 0, 0), ('0.0.0.0', 53)"),
            "in use; tried [::]:53, 0.0.0.0:53",
        ),
        (OSError(errno.EADDRINUSE, "In use: local=(None, 53)"), "in use: *:53"),
        (socket.gaierror(-2, "Unknown: targets=('a', 53)"), "unknown: targets=a:53"),
        (ValueError("target=('fe80::1%lo', 53) twice"), "target=[fe80::1%lo]:53 twice"),
        (FileNotFoundError(errno.ENOENT, "No such file", "x.svg"), "no such file: x.svg"),
        (OSError(errno.EINVAL, "Bad (it's 5, or 6) ('x', y)"), "bad (it's 5, or 6) ('x', y)"),
    ],
)
def test_an_error_in_words_has_addresses_as_one_types_them(error: Exception, words: str) -> None:
    assert in_words(error) == words


@pytest.mark.parametrize("text", ["0", "-1", "x", "", "inf", "nan", "1.5"])
def test_what_is_no_positive_number(text: str) -> None:
    with pytest.raises(ArgumentTypeError, match="is not a positive whole number"):
        _terminal.positive(int)(text)
    if text != "1.5":
        with pytest.raises(ArgumentTypeError, match="is not a positive number"):
            _terminal.positive(float)(text)


def test_positive_numbers() -> None:
    assert _terminal.positive(int)("7") == 7
    assert _terminal.positive(float)("0.25") == 0.25


def test_a_picture_that_can_be_made(tmp_path: Path) -> None:
    assert _terminal.new_svg("plain.svg") == Path("plain.svg")
    assert _terminal.new_svg(str(tmp_path / "new.svg")) == tmp_path / "new.svg"
    (tmp_path / "old.svg").touch()
    assert _terminal.new_svg(str(tmp_path / "old.svg")) == tmp_path / "old.svg"
    (tmp_path / "directory.svg").mkdir()
    for wrong in ("no/new.svg", "directory.svg", "new.png", "new", ".svg", "old.svg/new.svg", ""):
        with pytest.raises(ArgumentTypeError, match=r"is no file NAME\.svg in a directory that is"):
            _terminal.new_svg(str(tmp_path / wrong))


@pytest.mark.parametrize(
    "arguments",
    [
        "relay :0 --workers 2 127.0.0.1:9 [::1]:9 --json",
        "relay --json :0 127.0.0.1:9 --workers 2 [::1]:9",
        "relay --workers=2 :0 127.0.0.1:9 --json [::1]:9",
        "relay :0 127.0.0.1:9 [::1]:9 --json --workers 2",
    ],
)
def test_options_stand_anywhere_between_the_addresses(arguments: str) -> None:
    options = parse(arguments.split())
    assert options.listen == (None, 0)
    assert options.targets == [("127.0.0.1", 9), ("::1", 9)]
    assert (options.workers, options.json, options.duplicate) == (2, True, False)


MISTAKES = {
    "": "the following arguments are required: command",
    "nonsense": "invalid choice: 'nonsense'",
    "--nonsense": "the following arguments are required: command",
    "--json demo": "unrecognized arguments: --json",
    "demo --nonsense": "unrecognized arguments: --nonsense",
    "demo --seconds 0": "argument --seconds: '0' is not a positive number",
    "demo --seconds inf": "argument --seconds: 'inf' is not a positive number",
    "demo --seconds": "argument --seconds: expected one argument",
    "demo --datagrams -5": "argument --datagrams: ",
    "demo --datagrams 1.5": "argument --datagrams: '1.5' is not a positive whole number",
    "demo --size 7": "argument --size: it is from 8 to 65507",
    "demo --size 65508": "argument --size: it is from 8 to 65507",
    "demo --train 0": "argument --train: '0' is not a positive whole number",
    "demo --quick": "unrecognized arguments: --quick",
    "bench --plot no/such/directory/costs.svg": "argument --plot: 'no/such/directory/costs.svg' is",
    "bench --plot costs.png": "argument --plot: 'costs.png' is no file NAME.svg",
    "bench --seconds 1": "unrecognized arguments: --seconds 1",
    "probe now": "unrecognized arguments: now",
    "probe --json --nonsense": "unrecognized arguments: --nonsense",
    "relay :0": "the following arguments are required: TARGET",
    "relay :0 127.0.0.1:9 --nonsense 127.0.0.1:10": "unrecognized arguments: --nonsense",
    "relay :0 127.0.0.1:9 127.0.0.1": "argument TARGET: '127.0.0.1' is not HOST:PORT",
}


@pytest.mark.parametrize("arguments", MISTAKES)
def test_a_mistake_is_told_with_the_usage_of_the_command_and_exits_with_2(
    arguments: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments.split())
    assert ended.value.code == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    words = arguments.split()[:1]
    program = " ".join(["snaptun-trio", *(word for word in words if word in NAMES)])
    assert shown.err.startswith(f"usage: {program} [-h]")
    last = shown.err.splitlines()[-1]
    assert last.startswith(f"{program}: error: ")
    assert MISTAKES[arguments] in last


def test_the_help_names_each_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    assert tuple(re.findall(r"^    (\w+) +\w", capsys.readouterr().out, re.MULTILINE)) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_the_help_of_each_command_has_an_example_that_is_right_and_fits(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert "--json" in shown
    assert max(map(len, shown.splitlines())) <= 80
    example = shown.partition("example:\n  snaptun-trio ")[2]
    assert example.startswith(f"{name} ")
    parse(example.split())
