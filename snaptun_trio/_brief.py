# How a message names what it complains of: short enough to read, cut visibly, and never an error
# of its own.
#
# This file knows no class of the package.

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

_CUT = "..."


def brief(value: object, most: int = 60) -> str:
    """The repr of a value, with an ellipsis where it is cut.

    A repr may raise: that of an int over 4300 digits does. Then the type has to do.

    Args:
      value: anything.
      most: the longest text that is returned, in characters.
    """
    try:
        text = repr(value)
    except Exception:
        text = f"<{type(value).__name__} object>"
    return text if len(text) <= most else text[: most - len(_CUT)] + _CUT


def type_names(values: Iterable[object]) -> str:
    """The types of the values, each once, as a reader knows them: ``bytes and int``."""
    names = sorted({type(value).__name__ for value in values})
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
