# What can be run on the project: tests, lint, typing, docs, benchmarks. `nox -l` lists it.
#
# The tests run on every Python that this machine has of those the classifiers name, against the
# installed package and never the checkout. No session needs a network but for pip's installs, and
# this file must not know what the tests and benchmarks do: it passes their options through.

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nox

nox.needs_version = ">=2025.5"
nox.options.default_venv_backend = "virtualenv"
nox.options.reuse_venv = "yes"
nox.options.download_python = "never"
nox.options.error_on_missing_interpreters = False
nox.options.sessions = ["tests", "coverage", "lint", "typing", "docs"]

PYPROJECT = nox.project.load_toml("pyproject.toml")
CURRENT = f"{sys.version_info.major}.{sys.version_info.minor}"  # the Python that nox runs on
PYTHONS = list(dict.fromkeys([*nox.project.python_versions(PYPROJECT), CURRENT]))
MINIMUM_COVERAGE = 97


def switch_on_all_of_pyenv() -> None:
    """Make every Python that pyenv has installed visible, the newest of each minor version.

    pyenv's shims exist for all of them, but answer only for those that are switched on.
    """
    if shutil.which("pyenv") is None or "PYENV_VERSION" in os.environ:
        return
    command = ["pyenv", "versions", "--bare", "--skip-aliases"]
    listed = subprocess.run(command, capture_output=True, text=True, check=False).stdout.split()
    releases = [version for version in listed if re.fullmatch(r"\d+\.\d+\.\d+", version)]
    releases.sort(key=lambda version: [int(part) for part in version.split(".")])
    newest = {version.rpartition(".")[0]: version for version in releases}
    wanted = [newest[minor] for minor in PYTHONS if minor in newest]
    if wanted:
        os.environ["PYENV_VERSION"] = ":".join(wanted)


switch_on_all_of_pyenv()


def install(session: nox.Session, *groups: str, package: str | None = ".") -> None:
    """Install dependency groups, and the package itself as a user would get it."""
    wanted = nox.project.dependency_groups(PYPROJECT, *groups)
    session.install(*wanted, *([package] if package else []))


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """The test suite on one Python, under branch coverage. Options go to pytest.

    The fault suite takes most of the time and is about the kernel, which is the same for all: of
    several Pythons only the one that nox runs on has it, unless options say what to run.
    """
    install(session, "test", package=".[cli]")
    rest = [] if session.python == CURRENT else ["--ignore=tests/faults"]
    for stale in Path().glob(f".coverage.{session.python}.*"):
        stale.unlink()
    # -P keeps the checkout off the path: what is tested is the package that was installed.
    session.run(
        *("python", "-P", "-m", "coverage", "run", "-m", "pytest"),
        *(session.posargs or rest),
        env={"COVERAGE_FILE": f".coverage.{session.python}"},
    )


@nox.session(default=False)
def minimums(session: nox.Session) -> None:
    """The test suite with the oldest trio and attrs that the package admits."""
    oldest = [line.replace(">=", "==") for line in PYPROJECT["project"]["dependencies"]]
    session.install(*nox.project.dependency_groups(PYPROJECT, "test"), ".[cli]", *oldest)
    session.run("python", "-P", "-m", "pytest", *session.posargs)


@nox.session
def coverage(session: nox.Session) -> None:
    """What the tests sessions covered between them; fails below the project's minimum."""
    session.install(*(d for d in PYPROJECT["dependency-groups"]["test"] if "coverage" in d))
    session.run("coverage", "combine", "--quiet")
    session.run("coverage", "report", f"--fail-under={MINIMUM_COVERAGE}")


@nox.session
def lint(session: nox.Session) -> None:
    """Formatting, ruff's rules, and trio's checkpoint rules."""
    install(session, "lint", package=None)
    session.run("ruff", "format", "--check")
    session.run("ruff", "check")
    checkpoints = "--enable=ASYNC910,ASYNC911,ASYNC912,ASYNC913"
    session.run("flake8-async", checkpoints, *map(str, sorted(Path("snaptun_trio").rglob("*.py"))))


@nox.session
def typing(session: nox.Session) -> None:
    """mypy and pyright over everything, and the completeness of the public types."""
    install(session, "typing", package=".[cli]")
    session.run("mypy")
    # Left to itself it takes a .venv in the checkout, which need not have what is imported.
    python = ("--pythonpath", f"{session.bin}/python")
    session.run("basedpyright", *python)
    session.run("basedpyright", *python, "--verifytypes", "snaptun_trio", "--ignoreexternal")


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation; every warning is an error. Options go to sphinx-build."""
    install(session, "docs")
    target = ("-d", "docs/_build/doctrees", "docs", "docs/_build/html")
    session.run("sphinx-build", "-n", "-W", "--keep-going", "-q", *session.posargs, *target)


@nox.session(default=False)
def changelog(session: nox.Session) -> None:
    """Show what the news fragments say about the next version."""
    install(session, "docs", package=None)
    session.run("towncrier", "build", "--draft", "--version", "next")


@nox.session(default=False)
def bench(session: nox.Session) -> None:
    """Measure beside the bare system calls and other libraries. Options: `-- --help`."""
    install(session, "test", "bench", package=".[cli]")
    session.run("python", "-m", "tests.benchmarks", *session.posargs)


@nox.session(default=False)
def soak(session: nox.Session) -> None:
    """The long forms of the fault tests, hours if wished. Options go to pytest: `-- --help`."""
    install(session, "test", package=".[cli]")
    command = ("python", "-P", "-m", "pytest", "-m", "soak", "-s", "tests/faults")
    session.run(*command, *session.posargs)


@nox.session(default=False)
def mutate(session: nox.Session) -> None:
    """Put small faults into the package, and see which the tests miss. Options: `-- --help`."""
    install(session, "test", package=".[cli]")
    session.run("python", "-m", "tests.mutation", *session.posargs)
