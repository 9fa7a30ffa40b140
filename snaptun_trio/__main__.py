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
    except ModuleNotFoundError as error:
        if error.name not in ("rich", "prometheus_client"):
            raise
        how = "pip install '.[cli]' in a clone of snaptun_trio"
        print(f"snaptun-trio: it needs {error.name}, which is not there: {how}", file=sys.stderr)
        return 1
    return run()


if __name__ == "__main__":
    sys.exit(main())
