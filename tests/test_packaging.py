# The installed distribution says of itself what the package says.

from __future__ import annotations

from importlib.metadata import metadata, version
from importlib.resources import files

import snaptun_trio


def test_versions_agree() -> None:
    assert version("snaptun_trio") == snaptun_trio.__version__


def test_licence_expression_is_both() -> None:
    assert metadata("snaptun_trio")["License-Expression"] == "MIT OR Apache-2.0"


def test_type_information_is_installed() -> None:
    assert files(snaptun_trio).joinpath("py.typed").is_file()


def test_every_exported_class_says_that_it_lives_here() -> None:
    for name in snaptun_trio.__all__:
        exported = getattr(snaptun_trio, name)
        if isinstance(exported, type):
            assert exported.__module__ == "snaptun_trio", name
