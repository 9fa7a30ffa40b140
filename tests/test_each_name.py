# Every public name has an entry in the reference and an example in the docs, and the examples run.
#
# An example of a name is code of docs/examples that a page shows and that uses the name. This file
# must not know what the names do.

from __future__ import annotations

import ast
import inspect
import re

import pytest
import trio

import snaptun_trio
import snaptun_trio.testing

from .examples import EXAMPLES, ROOT, example

PAGES = {path.stem: path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("*.rst")}
NAMES = [*snaptun_trio.__all__, *snaptun_trio.testing.__all__]
SNIPPETS = example("each_name")
EXAMPLES_OF_NAMES = [
    name
    for name, value in vars(SNIPPETS).items()
    if inspect.isfunction(value) and value.__module__ == SNIPPETS.__name__
]
_DIRECTIVE = r"^( *)\.\. literalinclude:: examples/(\w+)\.py\n((?:\1 +:.*\n)*)"
_ENTRY = r"^\.\. (?:auto\w+|data|py:type):: (\w+)$"


def used_in(code: ast.AST) -> set[str]:
    """The names that code uses, and not only imports."""
    return {
        node.id if isinstance(node, ast.Name) else node.attr
        for node in ast.walk(code)
        if isinstance(node, ast.Name | ast.Attribute)
    }


def shown_on(page: str) -> list[tuple[str, str | None, set[str]]]:
    """The examples that a page shows: file, the part of it if it is one, and the names in it."""
    found: list[tuple[str, str | None, set[str]]] = []
    for _, file, options in re.findall(_DIRECTIVE, page, re.MULTILINE):
        tree: ast.AST = ast.parse((EXAMPLES / f"{file}.py").read_text(encoding="utf-8"))
        part = re.search(r":pyobject: (\w+)", options)
        if part is not None:
            (tree,) = [
                node
                for node in ast.iter_child_nodes(tree)
                if getattr(node, "name", None) == part[1]
            ]
        found.append((file, part and part[1], used_in(tree)))
    return found


SHOWN = [one for page in PAGES.values() for one in shown_on(page)]


@pytest.mark.parametrize("name", NAMES)
def test_every_public_name_has_an_entry_in_the_reference(name: str) -> None:
    assert re.findall(_ENTRY, PAGES["reference"], re.MULTILINE).count(name) == 1


@pytest.mark.parametrize("name", NAMES)
def test_every_public_name_has_an_example_that_a_page_shows(name: str) -> None:
    assert any(name in used for _, _, used in SHOWN)


@pytest.mark.parametrize("name", [name for name in NAMES if name[0].isupper() or "_udp" in name])
def test_every_class_has_an_example_on_the_reference_page(name: str) -> None:
    assert any(name in used for _, _, used in shown_on(PAGES["reference"]))


def test_a_name_that_is_in_no_example_would_be_found() -> None:
    assert not any("no_such_name" in used for _, _, used in SHOWN)
    assert "AsyncGenerator" in used_in(ast.parse("x: AsyncGenerator"))
    assert "serve_udp" not in used_in(ast.parse("from snaptun_trio import serve_udp"))


def test_every_example_of_a_name_stands_below_a_name_that_it_uses() -> None:
    entries = re.split(_ENTRY, PAGES["reference"], flags=re.MULTILINE)
    placed: list[str] = []
    for name, text in zip(entries[1::2], entries[2::2]):
        for file, part, used in shown_on(text):
            if file == SNIPPETS.__name__.removeprefix("example_"):
                assert part is not None
                assert name in used, f"{part} does not use {name}"
                placed.append(part)
    assert sorted(placed) == sorted(EXAMPLES_OF_NAMES)


@pytest.mark.parametrize("name", EXAMPLES_OF_NAMES)
async def test_the_examples_of_names_run(backend: str, name: str) -> None:
    function = getattr(SNIPPETS, name)
    if inspect.iscoroutinefunction(function):
        await function()
    else:
        function()
        await trio.lowlevel.checkpoint()


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_every_example_is_run_by_a_test(path: object) -> None:
    stem = getattr(path, "stem", "")
    tests = "".join(
        test.read_text(encoding="utf-8") for test in sorted((ROOT / "tests").glob("test_*.py"))
    )
    imported = "".join(other.read_text(encoding="utf-8") for other in sorted(EXAMPLES.glob("*.py")))
    assert (
        re.search(rf'\b(example|program)\("{stem}"|"{stem}\.py"', tests) is not None
        or re.search(rf"^(import|from) {stem}\b", imported, re.MULTILINE) is not None
    )
