# All mutants of a source file: every rule at every place where a fault would change what a program
# sees. Annotations, messages and representations are left as they are.

from __future__ import annotations

import ast
from collections import Counter
from typing import TYPE_CHECKING

import attrs

from ._mutant import MODULE, Edit, Mutant, Reach
from ._rules import RULES, Source

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_SPEECHLESS = {"__repr__", "__str__", "__slots__", "__all__"}
_DECLARATIONS = {"overload", "abstractmethod"}


def mutants_of(path: Path, module: str) -> list[Mutant]:
    """The mutants of a file, in the order of its lines; none is the same code as another."""
    text = path.read_bytes()
    source = Source(text)
    finder = _Finder(source)
    finder.visit_body(ast.parse(text).body)
    blocks = _Blocks(text)
    seen: set[bytes] = set()
    alike: Counter[tuple[str, int, str]] = Counter()
    mutants: list[Mutant] = []
    for edit, function, reach in finder.found:
        line = text.count(b"\n", 0, edit.start) + 1
        alike[function, line, edit.what] += 1
        changed = edit.apply(text)
        if changed in seen or not blocks.is_code(edit):
            continue
        seen.add(changed)
        number = alike[function, line, edit.what]
        mutation = edit.what if number == 1 else f"{edit.what} ({number})"
        shown = source.lines[line - 1].decode().strip()
        mutants.append(Mutant(path, module, function, line, shown, mutation, edit, reach))
    # The same text twice in a function: numbered as well, from the second on.
    keys: Counter[tuple[str, str, str, str]] = Counter()
    unique = []
    for mutant in mutants:
        keys[mutant.key] += 1
        again = keys[mutant.key]
        if again > 1:
            mutation = f"{mutant.mutation} [line {again} of this text]"
            mutant = attrs.evolve(mutant, mutation=mutation)
        unique.append(mutant)
    return sorted(unique, key=lambda mutant: (mutant.line, mutant.edit.start))


class _Blocks:
    """The statements of a module, to be parsed one by one with an edit in them."""

    def __init__(self, text: bytes) -> None:
        source = Source(text)
        self._text = text
        self._spans = [(source.start(n), source.stop(n)) for n in ast.parse(text).body]

    def is_code(self, edit: Edit) -> bool:
        """Whether the statement is still one with the edit."""
        for start, stop in self._spans:
            if start <= edit.start and edit.stop <= stop:
                inner = Edit(edit.start - start, edit.stop - start, edit.text, edit.what)
                try:
                    ast.parse(inner.apply(self._text[start:stop]))
                except SyntaxError:
                    return False
                return True
        return True  # a decorator's, which no rule touches


class _Finder:
    """Goes through a tree and keeps what the rules find."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._names: list[str] = []
        self._in_function = 0
        self._reach = Reach()
        self.found: list[tuple[Edit, str, Reach]] = []

    def visit_body(self, body: list[ast.stmt]) -> None:
        for statement in body:
            self.visit(statement)

    def visit(self, node: ast.AST) -> None:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            self._visit_function(node)
        elif isinstance(node, ast.ClassDef):
            if not any(ast.unparse(base).startswith("Protocol") for base in node.bases):
                self._names.append(node.name)
                self.visit_body(node.body)
                self._names.pop()
        elif isinstance(node, ast.stmt):
            before, self._reach = self._reach, self._reach_of(node)
            self._visit_statement(node)
            self._reach = before
        else:
            self._apply(node)
            self._descend(node)

    def _visit_function(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        names = {ast.unparse(decorator).rpartition(".")[2] for decorator in node.decorator_list}
        if node.name in _SPEECHLESS or names & _DECLARATIONS:
            return
        before = self._reach
        self._names.append(node.name)
        self._in_function += 1
        # The defaults are made when the module is, and show when the function runs.
        self._reach = Reach(node.body[0].lineno, node.end_lineno or node.lineno)
        for default in [*node.args.defaults, *node.args.kw_defaults]:
            if default is not None:
                self.visit(default)
        self.visit_body(node.body)
        self._in_function -= 1
        self._names.pop()
        self._reach = before

    def _visit_statement(self, node: ast.stmt) -> None:
        if isinstance(node, ast.Import | ast.ImportFrom):
            return
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            self.visit_body(node.orelse)
            return
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if any(ast.unparse(target) in _SPEECHLESS for target in targets):
                return
        if isinstance(node, ast.AnnAssign):
            if node.value is not None and ast.unparse(node.annotation) != "TypeAlias":
                self.visit(node.value)
            return
        self._apply(node)
        if not isinstance(node, ast.Raise):  # what it says is for people
            self._descend(node)

    def _descend(self, node: ast.AST) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.JoinedStr | ast.expr_context | ast.operator | ast.cmpop):
                continue
            self.visit(child)

    def _apply(self, node: ast.AST) -> None:
        rule = RULES.get(type(node))
        if rule is None:
            return
        if isinstance(node, ast.Return) and node.value is None and not self._in_function:
            return
        function = ".".join(self._names) if self._names else MODULE
        self.found += [(edit, function, self._reach) for edit in rule(node, self._source)]

    def _reach_of(self, node: ast.stmt) -> Reach:
        if not self._in_function:
            return Reach(names=frozenset(_names_bound(node)))
        return Reach(node.lineno, _header_end(node))


def _header_end(node: ast.stmt) -> int:
    """The last line of a statement, without the statements in it."""
    body = getattr(node, "body", None)
    if not isinstance(body, list) or not body:
        return node.end_lineno or node.lineno
    return max(node.lineno, int(body[0].lineno) - 1)


def _names_bound(node: ast.stmt) -> Iterator[str]:
    for part in ast.walk(node):
        if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store):
            yield part.id
