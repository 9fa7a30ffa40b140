"""The directive ``picture``: an SVG of docs/pictures as a part of the page, with a caption.

As an image a picture would not see the page's colours, and so be dark on dark for whoever has
switched the theme by hand.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.util.docutils import SphinxDirective

if TYPE_CHECKING:
    from sphinx.application import Sphinx
    from sphinx.util.typing import ExtensionMetadata


class Picture(SphinxDirective):
    """``.. picture:: file``, with the caption as its content."""

    required_arguments = 1
    has_content = True
    option_spec = {"class": directives.class_option}  # noqa: RUF012

    def run(self) -> list[nodes.Node]:
        _, file = self.env.relfn2path(self.arguments[0])
        self.env.note_dependency(file)
        svg = Path(file).read_text(encoding="utf-8")
        title = re.search(r"<title[^>]*>(.*?)</title>", svg, re.DOTALL)
        if not svg.startswith("<svg ") or title is None:
            raise self.error(f"{file} is no SVG with a title")
        figure = nodes.figure("", classes=["picture", *self.options.get("class", [])])
        self.set_source_info(figure)
        figure += nodes.raw("", svg, format="html")
        # Where a page is not HTML there is no picture, and the title says what is missing.
        figure += nodes.caption("", "", *self.caption(title[1]))
        return [figure]

    def caption(self, title: str) -> list[nodes.Node]:
        """The content's one paragraph, or the title of the picture."""
        if not self.content:
            return [nodes.Text(title)]
        (paragraph,) = self.parse_content_to_nodes()
        return paragraph.children


def setup(app: Sphinx) -> ExtensionMetadata:
    app.add_directive("picture", Picture)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
