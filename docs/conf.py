# Sphinx's settings. The build is strict (nitpicky, warnings are errors) and needs no network:
# names of trio and the standard library become links only where SNAPTUN_TRIO_INTERSPHINX or
# READTHEDOCS is set.

from __future__ import annotations

import builtins
import inspect
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from sphinx.pycode import ModuleAnalyzer
from sphinx.util import logging

import snaptun_trio
import snaptun_trio.testing

if TYPE_CHECKING:
    from sphinx.application import Sphinx

project = "snaptun_trio"
copyright = "2026, the snaptun_trio contributors"  # noqa: A001
release = version = snaptun_trio.__version__

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

extensions = [
    "narrow",
    "picture",
    "shown",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinxcontrib_trio",
    "myst_parser",
]
source_suffix = {".rst": "restructuredtext"}
exclude_patterns = ["_build", "_ext"]
default_role = "obj"
nitpicky = True
nitpick_ignore = [
    ("py:class", "stdlib_socket.socket"),  # autodoc shows no hook a property's type
    *(  # type variables have no page
        ("py:class", f"{module}{name}")
        for module in ("", "snaptun_trio._pump.")
        for name in ("ReceiverT", "SenderT")
    ),
    *(
        ("py:class", f"{module}{name}_co")
        for module in ("", "snaptun_trio._train.", "snaptun_trio._statistics.")
        for name in ("AddressT", "ReceiverStatisticsT", "SenderStatisticsT")
    ),
    ("py:class", "snaptun_trio._batch.PacketBatch"),  # the base class of the receiver, in brackets
]
html_theme = "furo"
html_title = f"snaptun_trio {release}"
html_static_path = ["_static"]
html_css_files = ["looks.css"]

autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False
autodoc_default_options = {"members": True, "undoc-members": True}
napoleon_google_docstring = True
napoleon_numpy_docstring = False

if {"SNAPTUN_TRIO_INTERSPHINX", "READTHEDOCS"} & os.environ.keys():
    extensions.append("sphinx.ext.intersphinx")
    intersphinx_mapping = {
        "python": ("https://docs.python.org/3", None),
        "trio": ("https://trio.readthedocs.io/en/stable", None),
    }
else:
    elsewhere = "|".join(["trio", *sys.stdlib_module_names])
    builtin_names = "|".join(re.escape(name) for name in dir(builtins))
    nitpick_ignore_regex = [
        ("py:.*", rf"({elsewhere})(\..*)?"),
        ("py:.*", rf"({builtin_names})(\..*)?"),
    ]


plain: dict[str, list[str]] = {}


def before_napoleon(
    app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]
) -> None:
    """Complain of a missing docstring, which autodoc would pass over without a word."""
    if not any(lines):
        lines[:] = description_in_the_class(name)
    if not any(lines):
        logging.getLogger(__name__).warning("%s %s has no docstring", what, name)
    if what == "attribute":
        plain[name] = list(lines)


def after_napoleon(
    app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]
) -> None:
    """Undo what it did to attributes: it takes all that stands before a colon for a type."""
    lines[:] = plain.pop(name, lines)


def description_in_the_class(name: str) -> list[str]:
    """What an attribute is by the arguments of its class, which are where it stands only once."""
    _, owner, attribute = name.rsplit(".", 2)
    home = snaptun_trio.testing if hasattr(snaptun_trio.testing, owner) else snaptun_trio
    description = inspect.getdoc(getattr(home, owner, None)) or ""
    found = re.search(rf"^  {attribute}: (.*(?:\n    .*)*)", description, re.MULTILINE)
    if found is None:
        return []
    sentence = re.sub(r"\s+", " ", found[1])
    return [sentence[0].upper() + sentence[1:], ""]


# Programs are given these, and make none.
MADE_BY_OTHERS = {
    *("UdpServer", "UdpChannel", "IncomingChannel", "MemoryChannel", "ImpairedChannel"),
    "RelayClient",
}
PUMP_TYPES = {
    "Handler": "Callable[[PacketBatch], PacketBatch | None]",
    "OnError": "Callable[[Exception, PacketBatch], object]",
}
SERVER_TYPES = {
    "Handler": "Callable[[UdpChannel], Awaitable[object]]",
    "Answer": "Callable[[bytes, Address], Packet | Iterable[Packet] | None]",
    "Admit": "Callable[[Address, PacketBatch[Address]], bool]",
    "OnError": "Callable[[Exception, UdpChannel], object]",
    "Eviction": "Literal['strangers', 'oldest', 'nobody']",
}
RELAY_TYPES = {
    "Admit": "Callable[[Address, PacketBatch], bool]",
    "RelayFunction": "Callable[[PacketBatch[Address], RelayClient], "
    "PacketBatch | Iterable[Packet] | None]",
    "OnError": "Callable[[Exception, RelayClient], object]",
}


def readable_signature(
    app: Sphinx, what: str, name: str, obj: object, options: object, *parts: str | None
) -> tuple[str | None, ...]:
    """Name types as the reader knows them, and not as the code does."""
    if what == "class" and name.rpartition(".")[2] in MADE_BY_OTHERS:
        return ("", "")

    def written_out(part: str | None) -> str | None:
        if part is None:
            return None
        part = re.sub(r"\[(AddressT_co|(~?(typing\.)?Any(, )?)+)\]", "", part)
        part = re.sub(r"\b(\w+Statistics)T_co\b", r"\1 | None", part)
        part = part.replace("stdlib_socket.socket", "socket.socket")
        part = part.replace("tuple[str, int] | tuple[str, int, int, int]", "Address")
        part = part.replace("AsyncIterator[BatchPump]", "BatchPump")
        part = re.sub(r"\bLocal\b", "tuple[str | None, int] | Address | int | None", part)
        own = {"serve_udp": SERVER_TYPES, "UdpRelay": RELAY_TYPES}
        for alias, meaning in own.get(name.rpartition(".")[2], PUMP_TYPES).items():
            part = re.sub(rf"\b{alias}\b", meaning, part)
        return part

    return tuple(written_out(part) for part in parts)


def long_names_may_break(
    app: Sphinx, page: str, template: str, context: dict[str, object], doctree: object
) -> None:
    """Let long names be broken after an underscore, or columns are as wide as the longest.

    Short ones, and options such as ``--json``, stay in one piece, and ``..._`` with what follows.
    """

    def may_break(word: re.Match[str]) -> str:
        if len(word[1]) < LONG:
            return word[0]
        return f'<span class="pre long">{re.sub(r"(?<=[^._])_", "_<wbr>", word[1])}</span>'

    body = str(context.get("body", ""))
    context["body"] = re.sub(r'<span class="pre">([^<]+)</span>', may_break, body)


LONG = 24  # characters of a name


def write_out_type_variables() -> None:
    """Give the attributes of generic classes the widest type that they can have."""
    snaptun_trio.PacketTrain.__annotations__["address"] = "Address | None"
    for end in ("Receiver", "Sender"):
        annotations = snaptun_trio.PumpStatistics.__annotations__
        annotations[end.lower()] = f"{end}Statistics | None"
    trains = snaptun_trio.PacketBatch.trains
    assert isinstance(trains, property)
    trains.fget.__annotations__["return"] = "tuple[PacketTrain, ...]"


def find_attribute_docstrings() -> None:
    """Show autodoc the docstrings below attributes, and the order of the members.

    It looks for both in the module that a class names as its own, which is the package, while
    they stand in the private module where the class is written.
    """
    for package in (snaptun_trio, snaptun_trio.testing):
        public = ModuleAnalyzer.for_module(package.__name__)
        public.analyze()
        for module in sorted(
            name for name in sys.modules if name.startswith(f"{package.__name__}._")
        ):
            if not str(sys.modules[module].__file__).endswith(".py"):
                continue  # the compiled part, which has nothing public
            private = ModuleAnalyzer.for_module(module)
            private.analyze()
            private.overloads.clear()  # a reader wants the signature that covers them all
            public.attr_docs.update(private.attr_docs)
            public.tagorder.update(private.tagorder)


def setup(app: Sphinx) -> None:
    find_attribute_docstrings()
    write_out_type_variables()
    app.connect("autodoc-process-docstring", before_napoleon, priority=400)
    app.connect("autodoc-process-docstring", after_napoleon, priority=600)
    app.connect("autodoc-process-signature", readable_signature)
    app.connect("html-page-context", long_names_may_break)
