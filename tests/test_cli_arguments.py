# What arguments of the commands become, and what is said of wrong ones.

from __future__ import annotations

from argparse import ArgumentTypeError
from pathlib import Path

import pytest

from snaptun_trio._cli import _arguments
from snaptun_trio._cli._main import COMMANDS, main


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:53", ("127.0.0.1", 53)),
        ("example.org:65535", ("example.org", 65_535)),
        ("[::1]:0", ("::1", 0)),
        ("[fe80::1%lo]:53", ("fe80::1%lo", 53)),
        ("[::]:53", ("::", 53)),
        (":53", (None, 53)),
        ("*:53", (None, 53)),
    ],
)
def test_addresses(text: str, address: tuple[str | None, int]) -> None:
    assert _arguments.host_port(text) == address


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is not HOST:PORT"),
        ("localhost", "is not HOST:PORT"),
        ("[::1]", "is not HOST:PORT"),
        ("[::1:53", "is not HOST:PORT"),
        ("::1", r"stands in brackets, such as \[::1\]:53"),
        ("::1:53", r"stands in brackets, such as \[::1\]:53"),
        ("2001:db8::7]:53", "stands in brackets"),
        ("[localhost]:53", "only an IPv6 address stands in brackets"),
        ("localhost:", "from 0 to 65535, not ''"),
        ("localhost:dns", "from 0 to 65535, not 'dns'"),
        ("localhost:65536", "from 0 to 65535, not '65536'"),
        ("localhost:-1", "from 0 to 65535, not '-1'"),
        ("localhost:+1", "from 0 to 65535"),
        ("localhost:1_0", "from 0 to 65535"),
        ("localhost:²", "from 0 to 65535"),
    ],
)
def test_what_is_no_address(text: str, says: str) -> None:
    with pytest.raises(ArgumentTypeError, match=says):
        _arguments.host_port(text)


@pytest.mark.parametrize("text", ["0", "-1", "x", "", "inf", "nan", "1.5"])
def test_what_is_no_positive_number(text: str) -> None:
    with pytest.raises(ArgumentTypeError, match="is not a positive whole number"):
        _arguments.positive(int)(text)
    if text != "1.5":
        with pytest.raises(ArgumentTypeError, match="is not a positive number"):
            _arguments.positive(float)(text)


def test_positive_numbers() -> None:
    assert _arguments.positive(int)("7") == 7
    assert _arguments.positive(float)("0.25") == 0.25


def test_a_file_that_can_be_made(tmp_path: Path) -> None:
    assert _arguments.new_file("plain.svg") == Path("plain.svg")
    assert _arguments.new_file(str(tmp_path / "new")) == tmp_path / "new"
    with pytest.raises(ArgumentTypeError, match="there is no directory"):
        _arguments.new_file(str(tmp_path / "no" / "new"))
    with pytest.raises(ArgumentTypeError, match="is a directory"):
        _arguments.new_file(str(tmp_path))


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nonsense"],
        ["demo", "--nonsense"],
        ["demo", "--seconds", "0"],
        ["demo", "--seconds", "inf"],
        ["demo", "--datagrams", "-5"],
        ["demo", "--datagrams", "5", "--seconds", "1"],
        ["demo", "--size", "11"],
        ["demo", "--size", "65508"],
        ["demo", "--train", "65", "--size", "100"],
        ["demo", "--train", "55"],
        ["bench", "--plot", "no/such/directory/costs.svg"],
        ["probe", "now"],
    ],
    ids=" ".join,
)
def test_a_mistake_in_the_arguments_exits_with_2(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    shown = capsys.readouterr()
    assert "usage: snaptun-trio" in shown.err
    assert shown.out == ""


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.__name__)
def test_the_help_of_each_command_has_an_example_and_fits(
    command: object, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    name = command.__name__.rpartition(".")[2].split("_")[1]  # type: ignore[attr-defined]
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert f"example:\n  snaptun-trio {name} " in shown
    assert "--json" in shown
    assert max(map(len, shown.splitlines())) <= 80
