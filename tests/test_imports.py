# The house: imports point one way and make no circle, and every file says what it is for.
#
# The files are parsed, not imported, and what is imported for type checking counts as well, but for
# the circle: two files may name each other's types.

from __future__ import annotations

import ast
import sys
from pathlib import Path

import attrs
import pytest

import snaptun_trio
import snaptun_trio.testing

from .command_line import EXTRA

PACKAGE = Path(snaptun_trio.__file__).parent
ALL_FILES = sorted(PACKAGE.rglob("*.py"))
# The command line is made of programs that use the package, not a part of it.
COMMAND_LINE = [path for path in ALL_FILES if "_cli" in path.parts or path.name == "__main__.py"]
FILES = [path for path in ALL_FILES if path not in COMMAND_LINE]
# Values: what `_kernel` may know of the rooms above it. They know nothing of it.
VALUES = {"_messages", "_train", "_way_back", "_coalesce", "_brief", "_losses", "_packing"}


@attrs.frozen
class Import:
    """One import of a file of the package by another."""

    importer: str
    imported: str
    for_typing: bool


def name_of(path: Path) -> str:
    """The name of a file within the package, such as ``_kernel._abi``."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


COMPILED = "_kernel._rows"
NAMES = {name_of(path) for path in FILES} | {COMPILED}
CLI_NAMES = {name_of(path) for path in COMMAND_LINE}


def imports_of(path: Path) -> list[Import]:
    """What a file imports from the package."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing_only = {
        node
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for statement in block.body
        for node in ast.walk(statement)
    }
    package = name_of(path).split(".") if name_of(path) else []
    if path.name != "__init__.py":
        package = package[:-1]
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            inside = any(alias.name.startswith("snaptun_trio") for alias in node.names)
            assert not inside or path in COMMAND_LINE, "those use it as any program does"
        elif isinstance(node, ast.ImportFrom):
            assert node.level or not (node.module or "").startswith("snaptun_trio")
            if node.level:
                base = package[: len(package) - node.level + 1]
                module = ".".join([*base, *(node.module or "").split(".")]).strip(".")
                for alias in node.names:
                    whole = f"{module}.{alias.name}".strip(".")
                    target = whole if whole in NAMES | CLI_NAMES else module
                    found.append(Import(name_of(path), target, node in typing_only))
    return found


IMPORTS = [one for path in FILES for one in imports_of(path)]


def imported_by(name: str) -> set[str]:
    return {one.imported for one in IMPORTS if one.importer == name}


def reached_from(name: str) -> set[str]:
    """Everything that comes with a file at run time, through however many others."""
    reached: set[str] = set()
    waiting = {name}
    while waiting:
        current = waiting.pop()
        reached.add(current)
        waiting |= {
            one.imported for one in IMPORTS if one.importer == current and not one.for_typing
        } - reached
    return reached - {name}


def test_the_imports_were_found() -> None:
    assert "_kernel" in imported_by("_receiver")
    assert "_kernel._abi" in imported_by("_kernel._cmsg")
    assert "_receiver" in imported_by("_pump")
    assert {one.imported for one in IMPORTS} <= NAMES


@pytest.mark.parametrize("name", sorted(NAMES))
def test_no_file_imports_itself_through_others(name: str) -> None:
    for one in IMPORTS:
        if one.importer == name and not one.for_typing:
            assert name not in reached_from(one.imported), f"{name} and {one.imported}"


def test_the_kernel_knows_nothing_above_it_but_values() -> None:
    for one in IMPORTS:
        if one.importer.startswith("_kernel") and not one.imported.startswith("_kernel"):
            assert one.imported in VALUES, one


def test_values_know_nothing_but_values() -> None:
    for name in VALUES:
        assert imported_by(name) <= VALUES


def test_errors_and_statistics_know_only_values() -> None:
    for name in ("_errors", "_statistics"):
        assert imported_by(name) <= VALUES


def test_receiver_and_sender_do_not_know_each_other() -> None:
    assert "_sender" not in reached_from("_receiver")
    assert "_receiver" not in reached_from("_sender")


def test_the_pump_is_known_only_to_what_opens_one_and_knows_no_kernel() -> None:
    assert {one.importer for one in IMPORTS if one.imported == "_pump"} <= {"", "_open"}
    assert not any(name.startswith("_kernel") for name in imported_by("_pump"))


def test_what_programs_are_tested_with_stands_beside_the_package() -> None:
    for one in IMPORTS:
        if one.imported.startswith("testing"):
            assert one.importer.startswith("testing"), one
        if one.importer.startswith("testing") and one.imported.startswith("_kernel"):
            assert one.importer == "testing._scripted", one
    for path in (PACKAGE / "testing").glob("*.py"):
        assert "import pytest" not in path.read_text(encoding="utf-8"), path.name


def test_the_group_knows_no_sender_and_the_poller_no_receiver() -> None:
    assert "_sender" not in reached_from("_receiver_group")
    assert imported_by("_kernel._poller") <= {"_kernel._interface"}
    assert {one.importer for one in IMPORTS if one.imported == "_kernel._poller"} == {
        "_receiver_group",
        *("_relay_front", "_relay_sessions", "_relay_copies"),
    }
    assert {one.importer for one in IMPORTS if one.imported == "_receiver_group"} == {""}
    assert imported_by("_group_errors") == {"_receiver"}


def test_the_parts_of_a_relay_know_what_is_below_them_only() -> None:
    assert imported_by("_rendezvous") <= {"_train"}
    assert imported_by("_openings") == set()
    assert imported_by("_relay_client") == {"_batch", "_messages", "_submitted", "_train"}
    assert imported_by("_relay_functions") <= {
        *("_batch", "_brief", "_coalesce", "_messages", "_plain", "_relay_client", "_submitted"),
        "_train",
    }
    assert "_relay_functions" not in reached_from("_relay_sessions")
    for part in ("_relay_sessions", "_relay_copies", "_relay_protocol", "_upstream"):
        assert not {"_relay", "_relay_front"} & reached_from(part)
    assert "_peer_table" not in reached_from("_upstream")
    assert "_relay" not in reached_from("_relay_front")
    assert "_server" not in reached_from("_relay")


def test_the_library_knows_nothing_of_the_command_line_nor_of_what_that_needs() -> None:
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or "", *(alias.name for alias in node.names)]
            for name in names:
                assert not {"rich", "prometheus_client", "_cli"} & set(name.split(".")), path.name


def test_the_command_line_uses_the_package_by_its_public_names() -> None:
    for path in COMMAND_LINE:
        for one in imports_of(path):
            assert one.imported in ("", "_version") or one.imported.startswith("_cli"), one
            assert one.importer == "__main__" or one.imported != "__main__"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "snaptun_trio":
                assert node.attr in snaptun_trio.__all__, f"{path.name}: {node.attr}"


def test_the_command_line_needs_what_its_extra_brings_and_no_more() -> None:
    needed = set()
    for path in COMMAND_LINE:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                needed |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                needed.add((node.module or "").partition(".")[0])
    assert needed - sys.stdlib_module_names - {"trio", "attrs"} == set(EXTRA)


def test_the_pool_knows_no_socket() -> None:
    known = imported_by("_pool")
    assert not known & {"_kernel._sockets", "_kernel._linux", "_kernel._portable", "_waiter"}


def test_only_the_backend_for_linux_knows_the_compiled_part() -> None:
    knowing = {one.importer for one in IMPORTS if one.imported == COMPILED}
    assert knowing == {"_kernel", "_kernel._linux"}, "and what asks whether it is there"


def test_nobody_knows_ctypes() -> None:
    for path in FILES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                assert "ctypes" not in {alias.name for alias in node.names}, path.name


def test_the_public_names_are_what_is_exported_and_nothing_else() -> None:
    public = {
        name
        for name, value in vars(snaptun_trio).items()
        if not name.startswith("_") and type(value).__name__ != "module"
    }
    public.discard("annotations")
    assert public | {"__version__"} == set(snaptun_trio.__all__)
    assert len(set(snaptun_trio.__all__)) == len(snaptun_trio.__all__)


def test_so_are_those_for_tests() -> None:
    public = {name for name in vars(snaptun_trio.testing) if not name.startswith("_")}
    assert public - {"annotations"} == set(snaptun_trio.testing.__all__)


@pytest.mark.parametrize("path", ALL_FILES, ids=lambda path: name_of(path) or "snaptun_trio")
def test_every_file_says_first_what_it_is_for(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.startswith(("# ", '"""')), "a comment or a docstring comes first"
    first = text.splitlines()[0].strip('#" ')
    assert len(first) > 20, "and says something"


@pytest.mark.parametrize("path", ALL_FILES, ids=lambda path: name_of(path) or "snaptun_trio")
def test_no_file_is_longer_than_can_be_read_at_once(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 450


def test_the_command_line_is_small_beside_the_library() -> None:
    lengths = [len(path.read_text(encoding="utf-8").splitlines()) for path in COMMAND_LINE]
    assert 0 < sum(lengths) < 1200
