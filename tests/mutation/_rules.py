# Which faults are put in: for each kind of syntax, the edits that a slip of the hand would make.
#
# Each rule gets a node and the source, and yields edits of the source's own text, so that a
# survivor is shown as somebody would have written it. Where a node stands is not its concern.

from __future__ import annotations

import ast
import re
from typing import TYPE_CHECKING, TypeAlias

from ._mutant import Edit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

COMPARISONS: dict[type[ast.cmpop], tuple[str, ...]] = {
    ast.Lt: ("<", "<=", ">="),
    ast.LtE: ("<=", "<", ">"),
    ast.Gt: (">", ">=", "<="),
    ast.GtE: (">=", ">", "<"),
    ast.Eq: ("==", "!="),
    ast.NotEq: ("!=", "=="),
    ast.Is: ("is", "is not"),
    ast.IsNot: ("is not", "is"),
    ast.In: ("in", "not in"),
    ast.NotIn: ("not in", "in"),
}
ARITHMETIC: dict[type[ast.operator], tuple[str, str]] = {
    ast.Add: ("+", "-"),
    ast.Sub: ("-", "+"),
    ast.Mult: ("*", "//"),
    ast.Div: ("/", "*"),
    ast.FloorDiv: ("//", "*"),
    ast.Mod: ("%", "//"),
    ast.Pow: ("**", "*"),
    ast.LShift: ("<<", ">>"),
    ast.RShift: (">>", "<<"),
    ast.BitAnd: ("&", "|"),
    ast.BitOr: ("|", "&"),
}
TWINS = {"min": "max", "max": "min", "any": "all", "all": "any"}
_NO_NUMBERS = (ast.JoinedStr, ast.List, ast.Tuple, ast.Dict, ast.Set)


class Source:
    """A source file, addressed by the positions that the parser gives."""

    def __init__(self, text: bytes) -> None:
        self.text = text
        self.lines = text.splitlines(keepends=True)
        self._starts = [0]
        for line in self.lines:
            self._starts.append(self._starts[-1] + len(line))

    def start(self, node: ast.expr | ast.stmt | ast.keyword) -> int:
        return self._starts[node.lineno - 1] + node.col_offset

    def stop(self, node: ast.expr | ast.stmt | ast.keyword) -> int:
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        return self._starts[node.end_lineno - 1] + node.end_col_offset

    def replace(self, node: ast.expr | ast.stmt, text: str, what: str) -> Edit:
        """Put ``text`` in the place of a node."""
        return Edit(self.start(node), self.stop(node), text.encode(), what)

    def between(self, left: ast.expr, right: ast.expr, old: str, new: str) -> Iterator[Edit]:
        """Replace the operator that stands between two nodes."""
        start, stop = self.stop(left), self.start(right)
        word = r"(?<!\w)" + re.escape(old).replace(r"\ ", r"\s+") + r"(?!\w)"
        sign = re.escape(old)
        found = re.search(
            (word if old.isascii() and old[0].isalpha() else sign).encode(), self.text[start:stop]
        )
        if found:
            yield Edit(start + found.start(), start + found.end(), new.encode(), f"{old} -> {new}")

    def excerpt(self, node: ast.expr, most: int = 40) -> str:
        """A node's text on one line, shortened."""
        text = " ".join(self.text[self.start(node) : self.stop(node)].decode().split())
        return text if len(text) <= most else text[: most - 3] + "..."


Edits: TypeAlias = "Iterator[Edit]"


def _condition(test: ast.expr, source: Source, values: Sequence[str]) -> Edits:
    if not isinstance(test, ast.Constant):
        for value in values:
            yield source.replace(test, value, f"condition -> {value}")


def if_(node: ast.If | ast.IfExp, source: Source) -> Edits:
    yield from _condition(node.test, source, ("True", "False"))


def while_(node: ast.While, source: Source) -> Edits:
    yield from _condition(node.test, source, ("False",))


def comprehension(node: ast.comprehension, source: Source) -> Edits:
    for test in node.ifs:
        yield from _condition(test, source, ("True",))


def not_(node: ast.UnaryOp, source: Source) -> Edits:
    if isinstance(node.op, ast.Not):
        text = source.text[source.start(node.operand) : source.stop(node.operand)].decode()
        yield source.replace(node, text, "not dropped")
    elif isinstance(node.op, ast.USub):
        yield Edit(source.start(node), source.start(node.operand), b"", "minus dropped")


def bool_op(node: ast.BoolOp, source: Source) -> Edits:
    old, new = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
    for left, right in zip(node.values, node.values[1:]):
        yield from source.between(left, right, old, new)
    neutral = "True" if old == "and" else "False"
    for value in node.values:
        yield source.replace(value, neutral, f"{source.excerpt(value)} -> {neutral}")


def compare(node: ast.Compare, source: Source) -> Edits:
    sides = [node.left, *node.comparators]
    for left, op, right in zip(sides, node.ops, sides[1:]):
        old, *others = COMPARISONS[type(op)]
        for new in others:
            yield from source.between(left, right, old, new)


def bin_op(node: ast.BinOp, source: Source) -> Edits:
    for side in (node.left, node.right):
        if isinstance(side, _NO_NUMBERS):
            return
        if isinstance(side, ast.Constant) and isinstance(side.value, str | bytes):
            return
    if type(node.op) in ARITHMETIC:
        yield from source.between(node.left, node.right, *ARITHMETIC[type(node.op)])


def constant(node: ast.Constant, source: Source) -> Edits:
    value = node.value
    if isinstance(value, bool):
        yield source.replace(node, str(not value), f"{value} -> {not value}")
    elif isinstance(value, int | float):
        # A bound that is 1 is as good as none. A first item that becomes the last is no slip.
        bounds = (value + 1, value - 1, 1) if value >= 16 else (value + 1, value - 1)
        for other in bounds:
            if other >= 0:
                yield source.replace(node, f"({other})", f"{source.excerpt(node)} -> {other}")


def aug_assign(node: ast.AugAssign, source: Source) -> Edits:
    if type(node.op) in ARITHMETIC:
        old, new = ARITHMETIC[type(node.op)]
        yield from source.between(node.target, node.value, old + "=", new + "=")
        yield from source.between(node.target, node.value, old + "=", "=")
    yield source.replace(node, "pass", "statement dropped")


def assign(node: ast.Assign, source: Source) -> Edits:
    """A local name that is not assigned is a `NameError`: that shows nothing."""
    if not any(isinstance(target, ast.Name | ast.Tuple) for target in node.targets):
        yield source.replace(node, "pass", "statement dropped")


def expr(node: ast.Expr, source: Source) -> Edits:
    if isinstance(node.value, ast.Call | ast.Await):
        yield source.replace(node, "pass", "statement dropped")


def dropped(node: ast.Raise | ast.Delete, source: Source) -> Edits:
    yield source.replace(node, "pass", "statement dropped")


def return_(node: ast.Return, source: Source) -> Edits:
    if node.value is None:
        yield source.replace(node, "pass", "statement dropped")
    elif not (isinstance(node.value, ast.Constant) and node.value.value is None):
        yield source.replace(node, "return None", "return None")


def break_(node: ast.Break, source: Source) -> Edits:
    yield source.replace(node, "continue", "break -> continue")
    yield source.replace(node, "pass", "statement dropped")


def continue_(node: ast.Continue, source: Source) -> Edits:
    yield source.replace(node, "break", "continue -> break")
    yield source.replace(node, "pass", "statement dropped")


def call(node: ast.Call, source: Source) -> Edits:
    if isinstance(node.func, ast.Name) and node.func.id in TWINS:
        yield source.replace(
            node.func, TWINS[node.func.id], f"{node.func.id} -> {TWINS[node.func.id]}"
        )
    for keyword in node.keywords:
        if keyword.arg is not None:
            rest = [other for other in node.keywords if other is not keyword]
            text = ast.unparse(ast.Call(node.func, node.args, rest))
            yield source.replace(node, text, f"{keyword.arg}= dropped")


def slice_(node: ast.Slice, source: Source) -> Edits:
    for name, bound in (("start", node.lower), ("stop", node.upper)):
        if bound is not None:
            yield source.replace(bound, "", f"slice without its {name}")


def handler(node: ast.ExceptHandler, source: Source) -> Edits:
    first, last = node.body[0], node.body[-1]
    if not isinstance(first, ast.Raise):
        yield Edit(source.start(first), source.stop(last), b"raise", "the handler raises")


def with_(node: ast.With, source: Source) -> Edits:
    if all(item.optional_vars is None for item in node.items):
        last = node.items[-1].context_expr
        yield Edit(source.start(node), source.stop(last), b"if True", "with dropped")


RULES: dict[type[ast.AST], Callable[..., Edits]] = {
    ast.If: if_,
    ast.IfExp: if_,
    ast.While: while_,
    ast.comprehension: comprehension,
    ast.UnaryOp: not_,
    ast.BoolOp: bool_op,
    ast.Compare: compare,
    ast.BinOp: bin_op,
    ast.Constant: constant,
    ast.AugAssign: aug_assign,
    ast.Assign: assign,
    ast.Expr: expr,
    ast.Raise: dropped,
    ast.Delete: dropped,
    ast.Return: return_,
    ast.Break: break_,
    ast.Continue: continue_,
    ast.Call: call,
    ast.Slice: slice_,
    ast.ExceptHandler: handler,
    ast.With: with_,
}
