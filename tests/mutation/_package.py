# The package that is mutated: its files, and where in them a name is used.
#
# It is found and parsed, never imported: a forked child imports it with the fault in it.

from __future__ import annotations

import ast
import importlib.util
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from ._find import mutants_of

if TYPE_CHECKING:
    from ._mutant import Mutant

NAME = "snaptun_trio"
ROOT = Path(__file__).parents[2]
"""Where the tests are collected from."""

# No logic of their own, or programs that use the package (which have processes of their own).
EXCLUDED = ("__main__.py", "_version.py", "_statistics.py", "_cli/*", "_cli/**/*")


@attrs.frozen
class Place:
    """Some lines of a file."""

    path: str
    lines: range


class Package:
    """The source files of the package, wherever it would be imported from."""

    def __init__(self) -> None:
        spec = importlib.util.find_spec(NAME)
        if spec is None or spec.origin is None:
            raise LookupError(f"{NAME} is neither installed nor in the current directory")
        self.folder = Path(spec.origin).parent
        self.files = sorted(self.folder.rglob("*.py"))
        self._places: defaultdict[str, list[Place]] = defaultdict(list)
        self._passed_on: defaultdict[str, set[str]] = defaultdict(set)
        for path in self.files:
            self._note_names(path)

    def show(self, path: Path) -> str:
        """A file's name within the package."""
        return path.relative_to(self.folder).as_posix()

    def mutants(self, only: list[str]) -> list[Mutant]:
        """The mutants of all files that are not excluded, or of those among them in ``only``."""
        found: list[Mutant] = []
        for path in self.files:
            name = path.relative_to(self.folder)
            if any(name.match(pattern) for pattern in EXCLUDED):
                continue
            if not only or any(name.match(pattern) for pattern in only):
                found += mutants_of(path, self._module(path))
        return found

    def _module(self, path: Path) -> str:
        parts = path.relative_to(self.folder).with_suffix("").parts
        return ".".join([NAME, *(parts[:-1] if parts[-1] == "__init__" else parts)])

    def users(self, names: frozenset[str]) -> list[Place]:
        """The lines of functions that use one of these names of a module or class.

        Where such a name only goes into another one, the lines that use that.
        """
        known, new = set(names), set(names)
        while new:
            new = set().union(*(self._passed_on[name] for name in new)) - known
            known |= new
        return [place for name in sorted(known) for place in self._places[name]]

    def _note_names(self, path: Path) -> None:
        tree = ast.parse(path.read_bytes())
        functions = (ast.FunctionDef, ast.AsyncFunctionDef)
        outside: list[ast.AST] = list(tree.body)
        while outside:
            node = outside.pop()
            if isinstance(node, functions):
                for part in node.body:
                    for name, lines in _uses(part):
                        self._places[name].append(Place(str(path), lines))
            elif isinstance(node, ast.ClassDef):
                outside += node.body
            elif isinstance(node, ast.stmt):
                bound = {
                    part.id
                    for part in ast.walk(node)
                    if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store)
                }
                for name, _ in _uses(node):
                    self._passed_on[name] |= bound


def _uses(node: ast.AST) -> list[tuple[str, range]]:
    """The names that are read in a piece of code, each with its lines."""
    found = []
    for part in ast.walk(node):
        name = None
        if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Load):
            name = part.id
        elif isinstance(part, ast.Attribute):
            name = part.attr
        if name is not None:
            assert isinstance(part, ast.expr)
            found.append((name, range(part.lineno, (part.end_lineno or part.lineno) + 1)))
    return found
