# What can be run on the project: tests, lint, typing, docs, benchmarks. `nox -l` lists it.
#
# The tests run against the installed package and never the checkout, in as many processes as there
# are processors (`-n 0` is one process, for a debugger): all of them on the Python that nox runs
# on, the core suite on the others that this machine has of those the classifiers name. No session
# needs a network but for pip's installs, and this file must not know what the tests and benchmarks
# do: it passes their options through.

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
nox.options.sessions = ["tests", "pythons", "coverage", "lint", "typing", "docs"]

PYPROJECT = nox.project.load_toml("pyproject.toml")
CURRENT = f"{sys.version_info.major}.{sys.version_info.minor}"  # the Python that nox runs on
PYTHONS = list(dict.fromkeys([*nox.project.python_versions(PYPROJECT), CURRENT]))
OTHERS = [version for version in PYTHONS if version != CURRENT]
# Builds in what the tests need to stand between the compiled part and the kernel.
HOOKS = {"SNAPTUN_TRIO_TEST_HOOKS": "1"}
MINIMUM_COVERAGE = 97

# -P keeps the checkout off the path: what is tested is the package that was installed.
PYTEST = ("python", "-P", "-m", "pytest")
PARALLEL = ("-n", "auto", "--dist", "worksteal")
# The fault suite takes most of the time and is about the kernel, which is the same for all; and so
# are most of the tests that take long.
CORE = ("--ignore=tests/faults", "-m", "not slow")
# What runs programs of its own, of the docs and of the benchmarks, is the same on each Python, and
# no line of the package is run by it alone.
PROGRAMS = tuple(
    f"--ignore-glob=tests/{name}"
    for name in ("test_example_*", "test_cookbook*", "test_howto*", "test_tunnel*", "*benchmark*")
)


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
    """Install dependency groups, and the package itself as a user would get it.

    But for the hooks with which the tests stand between the compiled part and the kernel.
    """
    wanted = nox.project.dependency_groups(PYPROJECT, *groups)
    session.install(*wanted, *([package] if package else []), env={"SNAPTUN_TRIO_TEST_HOOKS": "1"})


@nox.session
def tests(session: nox.Session) -> None:
    """Every test, on the Python that nox runs on. Options go to pytest."""
    install(session, "test", package=".[cli]")
    session.run(*PYTEST, *PARALLEL, *session.posargs)


@nox.session(default=False)
def quick(session: nox.Session) -> None:
    """What one runs while working: no faults, nothing slow, few examples. Options go to pytest."""
    install(session, "test", package=".[cli]")
    options = ("-q", "--hypothesis-profile=quick")
    session.run(*PYTEST, *PARALLEL, *CORE, *options, *session.posargs)


@nox.session(python=OTHERS)
def pythons(session: nox.Session) -> None:
    """The core suite on the other Pythons. Options go to pytest."""
    install(session, "test", package=".[cli]")
    session.run(*PYTEST, *PARALLEL, *(session.posargs or (*CORE, *PROGRAMS)))


@nox.session(default=False)
def minimums(session: nox.Session) -> None:
    """The test suite with the oldest trio and attrs that the package admits."""
    oldest = [line.replace(">=", "==") for line in PYPROJECT["project"]["dependencies"]]
    session.install(*nox.project.dependency_groups(PYPROJECT, "test"), ".[cli]", *oldest)
    session.run(*PYTEST, *PARALLEL, *session.posargs)


@nox.session
def coverage(session: nox.Session) -> None:
    """The core suite under branch coverage; fails below the project's minimum."""
    install(session, "test", package=".[cli]")
    session.run("coverage", "erase")
    session.run(
        "python", "-P", "-m", "coverage", "run", "-m", "pytest", *PARALLEL, *CORE, *PROGRAMS
    )
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
def stress(session: nox.Session) -> None:
    """Every test, so many times (`-- 20`), in random orders, while busy loops want the processors.

    What follows the number goes to pytest.
    """
    runs, *rest = session.posargs or ["20"]
    install(session, "test", package=".[cli]")
    command = [f"{session.bin}/python", *PYTEST[1:], *PARALLEL, "-q", *rest]
    if session.run("python", "--version", silent=True) is None:
        return  # --install-only, which knows nothing of the runs below
    loops = [
        subprocess.Popen([sys.executable, "-c", "while True: pass"])
        for _ in range((os.cpu_count() or 1) + 1)
    ]
    try:
        failed = [
            run for run in range(int(runs)) if subprocess.run(command, check=False).returncode
        ]
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()
    if failed:
        session.error(f"{len(failed)} of {runs} runs failed")


@nox.session(default=False)
def sanitize(session: nox.Session) -> None:
    """The tests with the compiled part under AddressSanitizer and UBSan. Options go to pytest."""
    flags = "-fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer -O1 -g"
    session.install(*nox.project.dependency_groups(PYPROJECT, "test"))
    session.install("--force-reinstall", "--no-deps", ".", env={**HOOKS, "CFLAGS": flags})
    session.install(".[cli]", env={**HOOKS, "CFLAGS": flags})
    find = ["cc", "-print-file-name=libasan.so"]
    library = subprocess.run(find, capture_output=True, text=True, check=True).stdout.strip()
    # What dies in a test's child, or under pytest's capture, says why in a file. UBSan does not:
    # what it says is seen with `-n 0 -s`.
    reports = Path(session.virtualenv.location, "reports")
    shutil.rmtree(reports, ignore_errors=True)
    reports.mkdir()
    env = {
        "LD_PRELOAD": library,
        # Python's arenas and what it keeps to the end are no leaks; leaks have tests of their own.
        "ASAN_OPTIONS": f"detect_leaks=0:log_path={reports}/report",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "PYTHONMALLOC": "malloc",
    }
    try:
        session.run(*PYTEST, *PARALLEL, *session.posargs, env=env)
    finally:
        found = sorted(reports.iterdir())
        for report in found:
            session.warn(report.read_text(errors="replace"))
    if found:
        session.error(f"the tests passed, and there are {len(found)} reports")


@nox.session(default=False)
def wheels(session: nox.Session) -> None:
    """Build both wheels, and run the core suite on each of them with every Python that is found.

    And the commands, in an environment that has nothing but the wheel with its extra.
    """
    session.install("build", "setuptools>=77")
    for build, kind in (("yes", "compiled"), ("no", "pure")):
        target = f"dist/{kind}"
        shutil.rmtree(target, ignore_errors=True)
        env = {"SNAPTUN_TRIO_BUILD": build}
        session.run("python", "-m", "build", "--wheel", "--outdir", target, ".", env=env)
        (wheel,) = Path(target).glob("*.whl")
        for python in PYTHONS:
            interpreter = shutil.which(f"python{python}")
            if interpreter is None:
                session.warn(f"no python{python} here")
                continue
            home = session.create_tmp()
            session.run(interpreter, "-m", "venv", "--clear", f"{home}/bare", external=True)
            bare = f"{home}/bare/bin"
            session.run(f"{bare}/pip", "install", "-q", f"{wheel}[cli]", external=True)
            for command in ("--version", "probe --json", "demo --datagrams 2000 --json"):
                session.run(f"{bare}/snaptun-trio", *command.split(), external=True)
            session.run(interpreter, "-m", "venv", "--clear", f"{home}/venv", external=True)
            tests = nox.project.dependency_groups(PYPROJECT, "test")
            there = f"{home}/venv/bin/python"
            install = (there, "-m", "pip", "install", "-q", *tests, f"{wheel}[cli]")
            session.run(*install, external=True)
            session.run(there, *PYTEST[1:], *PARALLEL, *CORE, *session.posargs, external=True)


def benchmark(session: nox.Session, module: str) -> None:
    """Run one of the benchmarks. Options go to it."""
    install(session, "test", "bench", package=None)
    session.install("-e", ".[cli]")  # it runs in the checkout, and wants the compiled part there
    session.run("python", "-m", module, *session.posargs)


@nox.session(default=False)
def bench(session: nox.Session) -> None:
    """Measure beside the bare system calls and other libraries. Options: `-- --help`."""
    benchmark(session, "tests.benchmarks")


@nox.session(default=False, name="bench-relays")
def bench_relays(session: nox.Session) -> None:
    """Measure the relay beside nginx, socat and others, where they are. Options: `-- --help`."""
    benchmark(session, "tests.benchmarks.relays")


@nox.session(default=False, name="bench-programs")
def bench_programs(session: nox.Session) -> None:
    """Measure the docs' programs beside the same on asyncio and others. Options: `-- --help`."""
    benchmark(session, "tests.benchmarks.cookbook")


@nox.session(default=False, name="bench-tunnel")
def bench_tunnel(session: nox.Session) -> None:
    """Measure the tunnel of docs/examples beside wireguard-go. Options: `-- --help`."""
    benchmark(session, "tests.benchmarks.tunnels")


@nox.session(default=False, name="bench-quic")
def bench_quic(session: nox.Session) -> None:
    """Measure the QUIC example beside aioquic's own on asyncio and uvloop. Options: `-- --help`."""
    benchmark(session, "tests.benchmarks.quic")


@nox.session(default=False)
def soak(session: nox.Session) -> None:
    """The long forms of the fault tests, hours if wished. Options go to pytest: `-- --help`."""
    install(session, "test", package=".[cli]")
    session.run(*PYTEST, "-m", "soak", "-s", "tests/faults", *session.posargs)


@nox.session(default=False)
def mutate(session: nox.Session) -> None:
    """Put small faults into the package, and see which the tests miss. Options: `-- --help`."""
    install(session, "test", package=None)
    session.install("-e", ".[cli]", env=HOOKS)  # in the checkout as well
    session.run("python", "-m", "tests.mutation", *session.posargs)
