"""What a page needs of its tables, numbers and programs, or it reads badly on a narrow screen.

A table of words becomes a list there, by looks.css. Its cells then need their columns' names: they
are given them in the attribute ``data-column``, where there are more than two columns.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from docutils import nodes

if TYPE_CHECKING:
    from sphinx.application import Sphinx
    from sphinx.util.typing import ExtensionMetadata
    from sphinx.writers.html5 import HTML5Translator

# 10 000, 30 %, 50 ms
WITHIN_A_NUMBER = re.compile(
    r"(?<=\d) (?=\d{3}(?!\d)|%|(?:[munµ]?s|[kMG]B|[KMG]iB|[kMG]bit/s)(?!\w))"
)
NO_BREAK_SPACE = "\N{NO-BREAK SPACE}"


def read(app: Sphinx, document: nodes.document) -> None:
    for table in document.findall(nodes.table):
        if "colwidths-given" in table["classes"]:
            name_the_cells(table)
    for text in list(document.findall(nodes.Text)):
        if not isinstance(text.parent, nodes.FixedTextElement | nodes.literal | nodes.raw):
            keep_numbers_whole(text)
    for block in document.findall(nodes.literal_block):
        if block.rawsource == block.astext():  # else it has nodes of its own, and no colours
            end_with_the_last_line(block)


def name_the_cells(table: nodes.table) -> None:
    (group,) = table.findall(nodes.tgroup)
    for head in group.findall(nodes.thead):
        names = [entry.astext() for entry in head[-1]]
        if len(names) > 2:
            for row in group[-1]:
                for name, entry in zip(names[1:], row[1:], strict=True):
                    entry["column"] = name


def keep_numbers_whole(text: nodes.Text) -> None:
    whole = WITHIN_A_NUMBER.sub(NO_BREAK_SPACE, text)
    if whole != text:
        text.parent.replace(text, nodes.Text(whole))


def end_with_the_last_line(block: nodes.literal_block) -> None:
    """Without the empty lines in front of what a ``literalinclude`` ends before."""
    block.rawsource = block.rawsource.rstrip("\n")
    block[:] = [nodes.Text(block.rawsource)]


def visit_entry(self: HTML5Translator, node: nodes.entry) -> None:
    type(self).visit_entry(self, node)
    if node.get("column"):
        name = self.attval(node["column"])
        self.body[-1] = self.body[-1].replace("<td", f'<td data-column="{name}"', 1)


def setup(app: Sphinx) -> ExtensionMetadata:
    app.connect("doctree-read", read)
    app.add_node(nodes.entry, override=True, html=(visit_entry, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
