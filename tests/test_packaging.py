# The installed distribution says of itself what the package says.

from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import distribution, metadata, version
from importlib.resources import files

import snaptun_trio
import snaptun_trio.testing
from snaptun_trio import __main__

from .command_line import EXTRA


def test_versions_agree() -> None:
    assert version("snaptun_trio") == snaptun_trio.__version__


def test_licence_expression_is_both() -> None:
    assert metadata("snaptun_trio")["License-Expression"] == "MIT OR Apache-2.0"


def test_the_command_is_installed_and_what_it_needs_is_an_extra() -> None:
    (command,) = distribution("snaptun_trio").entry_points
    assert (command.group, command.name) == ("console_scripts", "snaptun-trio")
    assert command.load() is __main__.main
    needed = metadata("snaptun_trio").get_all("Requires-Dist") or []
    extra = [line for line in needed if line.endswith('extra == "cli"')]
    names = {re.split(r"[^\w-]", line)[0].replace("-", "_") for line in extra}
    assert names == set(EXTRA)


def test_type_information_is_installed() -> None:
    assert files(snaptun_trio).joinpath("py.typed").is_file()


def test_every_exported_class_says_that_it_lives_here() -> None:
    for name in snaptun_trio.__all__:
        exported = getattr(snaptun_trio, name)
        if isinstance(exported, type):
            assert exported.__module__ == "snaptun_trio", name


def test_what_programs_are_tested_with_is_installed_and_comes_only_when_asked_for() -> None:
    for name in snaptun_trio.testing.__all__:
        assert getattr(snaptun_trio.testing, name).__module__ == "snaptun_trio.testing", name
    check = "import sys, snaptun_trio; assert 'snaptun_trio.testing' not in sys.modules"
    subprocess.run([sys.executable, "-P", "-c", check], check=True)
