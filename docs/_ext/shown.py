"""``literalinclude`` names the file that it shows, all of it or a part, and links to it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sphinx.directives.code import LiteralInclude

if TYPE_CHECKING:
    from docutils import nodes
    from sphinx.application import Sphinx
    from sphinx.util.typing import ExtensionMetadata

CUTS = {"pyobject", "lines", "start-at", "start-after", "end-at", "end-before"}


class Shown(LiteralInclude):
    """Without a caption of its own, it has the file's name for one."""

    def run(self) -> list[nodes.Node]:
        shown = self.arguments[0]
        name = f"docs/{self.env.relfn2path(shown)[0]}"
        part = "a part of " if CUTS & self.options.keys() else ""
        self.options.setdefault("caption", f"{part}:download:`{name} <{shown}>`")
        return super().run()


def setup(app: Sphinx) -> ExtensionMetadata:
    app.add_directive("literalinclude", Shown, override=True)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
