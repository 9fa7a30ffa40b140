# The way in to the command line: `python -m snaptun_trio`. All else is in `_cli`, and nothing of
# the library imports either.

from __future__ import annotations

import sys


def main() -> int:
    """Run the command line and return its exit code."""
    try:
        from ._cli._main import main as run  # which takes a moment, in which Ctrl-C may come
    except KeyboardInterrupt:
        return 130
    return run()


if __name__ == "__main__":
    sys.exit(main())
