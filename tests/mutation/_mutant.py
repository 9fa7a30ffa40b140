# A mutant: one edit of one source file, where it stands, and what the diff is.
#
# It is known by the function, the text of the line and what was done to it, so that it stays the
# same when lines move. This file must not know which edits are worth making, nor any test.

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from pathlib import Path

MODULE = "<module>"
"""What stands for the function where there is none."""


@attrs.frozen
class Edit:
    """Some bytes of a source file, and what stands in their place."""

    start: int
    stop: int
    text: bytes
    what: str
    """What is done, such as ``< -> <=``."""

    def apply(self, source: bytes) -> bytes:
        """The source with the fault."""
        return source[: self.start] + self.text + source[self.stop :]


@attrs.frozen
class Reach:
    """When the edited code runs: in which lines, or wherever one of some names is used.

    With neither, nobody can tell, and every test of the file has to be asked.
    """

    first: int = 0
    last: int = -1
    names: frozenset[str] = frozenset()

    @property
    def lines(self) -> range:
        """The lines of the statement, 1 the first."""
        return range(self.first, self.last + 1)


@attrs.frozen
class Mutant:
    """One edit of one file of the package."""

    path: Path
    module: str
    """The dotted name of the module."""
    function: str
    line: int
    code: str
    """The text of the line, stripped."""
    mutation: str
    """What was done to it; of several alike on one line, with a number."""
    edit: Edit = attrs.field(repr=False)
    reach: Reach = attrs.field(repr=False)

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What it is known by: module, function, line and mutation."""
        return self.module, self.function, self.code, self.mutation

    def source(self) -> bytes:
        """The file with the fault in it."""
        return self.edit.apply(self.path.read_bytes())

    def diff(self) -> str:
        """The lines that differ, as a unified diff without its heading."""
        before = self.path.read_text(encoding="utf-8").splitlines()
        after = self.source().decode().splitlines()
        lines = list(difflib.unified_diff(before, after, n=0, lineterm=""))
        return "\n".join(lines[3:])
