# The code blocks of the documentation: where they stand, in which language, and what they say.
#
# Files that a page includes are not among them unless they are no programs: those of docs/examples
# have tests of their own.

from __future__ import annotations

import ast
import re
import textwrap
from typing import TYPE_CHECKING, NamedTuple

from .examples import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PAGES = sorted((ROOT / "docs").glob("*.rst"))
TEXTS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")]
# The checkout's, since an installed package need not be where this looks.
MODULES = sorted((ROOT / "snaptun_trio").rglob("*.py"))
_DIRECTIVE = re.compile(
    r"^( *)\.\. (code-block|code|sourcecode|literalinclude|parsed-literal)::(.*)$"
)
_LITERAL = re.compile(r"^ *(?!\.\. )\S.*::$|^ *::$")
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """A block of code: the language is empty where the text does not name one."""

    path: Path
    line: int
    language: str
    text: str
    owner: str = ""
    """The class or function of whose docstring it is a part."""

    @property
    def id(self) -> str:
        """Where it stands."""
        return f"{self.path.relative_to(ROOT)}:{self.line}"


def below(lines: list[str], start: int, margin: int) -> str:
    """The lines from `start` that are indented further than `margin`, without options."""
    body: list[str] = []
    for line in lines[start:]:
        if line.strip() and len(line) - len(line.lstrip()) <= margin:
            break
        body.append(line)
    while body and re.match(r"\s*(:\w[\w-]*:.*)?$", body[0]):
        del body[0]
    return textwrap.dedent("\n".join(body)).rstrip() + "\n"


def in_rst(path: Path, text: str, first: int = 1, owner: str = "") -> Iterator[Block]:
    """The blocks of reStructuredText, which may be a docstring."""
    lines = text.splitlines()
    for number, line in enumerate(lines):
        margin = len(line) - len(line.lstrip())
        directive = _DIRECTIVE.match(line)
        if directive is not None:
            kind, argument = directive[2], directive[3].strip()
            if kind == "literalinclude":
                if not argument.endswith(".py"):
                    included = (path.parent / argument).read_text(encoding="utf-8")
                    suffix = argument.rpartition(".")[2]
                    yield Block(path, first + number, suffix, included, owner)
                continue
            language = argument if kind == "code-block" else kind
            yield Block(path, first + number, language, below(lines, number + 1, margin), owner)
        elif _LITERAL.match(line):
            yield Block(path, first + number, "", below(lines, number + 1, margin), owner)


def in_markdown(path: Path) -> Iterator[Block]:
    """The fenced blocks of a Markdown file."""
    text = path.read_text(encoding="utf-8")
    for fence in _FENCE.finditer(text):
        yield Block(path, text.count("\n", 0, fence.start()) + 1, fence[1], fence[2])


def in_docstrings(path: Path) -> Iterator[Block]:
    """The blocks in a module's docstrings, those below attributes included."""

    def inside(node: ast.AST, owner: str) -> Iterator[Block]:
        name = getattr(node, "name", "")
        owner = name if isinstance(node, ast.ClassDef) or not owner else owner
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant):
                if isinstance(child.value.value, str):
                    first, _, rest = child.value.value.partition("\n")
                    text = f"{first}\n{textwrap.dedent(rest)}"
                    yield from in_rst(path, text, child.lineno, owner)
            else:
                yield from inside(child, owner)

    yield from inside(ast.parse(path.read_text(encoding="utf-8")), "")


def all_blocks() -> list[Block]:
    """Every block there is, in order."""
    found: list[Block] = []
    for page in PAGES:
        found += in_rst(page, page.read_text(encoding="utf-8"))
    for text in TEXTS:
        found += in_markdown(text)
    for module in MODULES:
        found += in_docstrings(module)
    return found
