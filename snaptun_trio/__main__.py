# The way in to the command line: `python -m snaptun_trio`. All else is in `_cli`, and nothing of
# the library imports either.

from __future__ import annotations

import sys

from ._cli._main import main

if __name__ == "__main__":
    sys.exit(main())
