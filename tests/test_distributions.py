# What is distributed has in it what it should, and nothing else: the list is made from the source
# tree, by rule. It is built in a copy, since a build leaves its litter where it runs.

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from zipfile import ZipFile

import pytest

from snaptun_trio._version import __version__

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "snaptun_trio"
STEM = f"snaptun_trio-{__version__}"
COMPILED = "snaptun_trio/_kernel/_rows.abi3.so"
LITTER = shutil.ignore_patterns(
    "build", "dist", "_build", "__pycache__", "*.egg-info", "*.so", ".*"
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PACKAGE.is_dir(), reason="the sources are not here"),
]


def build(kind: str, directory: Path, **changes: str) -> set[str]:
    """Build a "wheel" or an "sdist" from a copy of the sources; the names of the files in it."""
    source, target = directory / "source", directory / "dist"
    shutil.copytree(ROOT, source, ignore=LITTER)
    code = f"from setuptools import build_meta; build_meta.build_{kind}({str(target)!r})"
    environment = {name: value for name, value in os.environ.items() if "SNAPTUN" not in name}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=source,
        env={**environment, **changes},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    (built,) = target.iterdir()
    if kind == "wheel":
        with ZipFile(built) as wheel:
            return set(wheel.namelist())
    with tarfile.open(built) as sdist:
        return {member.name for member in sdist if member.isfile()}


def sources(folder: str, *suffixes: str) -> set[str]:
    """The source files of a folder, by the ends of their names."""
    return {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / folder).rglob("*")
        if path.name.endswith(suffixes)
        and "__pycache__" not in path.parts
        and "_build" not in path.parts
    }


IN_WHEEL = sources("snaptun_trio", ".py", ".pyi", "py.typed") | {
    f"{STEM}.dist-info/{name}"
    for name in (
        *("METADATA", "RECORD", "WHEEL", "entry_points.txt", "top_level.txt"),
        *(f"licenses/{path}" for path in ("LICENSE", *sources("LICENSES", ".txt"))),
    )
}
IN_SDIST = {
    f"{STEM}/{name}"
    for name in (
        *sources("snaptun_trio", ".py", ".pyi", "py.typed", ".c", ".h"),
        *sources("tests", ".py", ".toml", ".c", ".h"),
        *sources("docs", ".rst", ".py", ".svg", ".inc", ".css"),
        *sources("docs", ".nft", ".yaml", ".conf", ".service", ".socket", "Containerfile"),
        *sources("LICENSES", ".txt"),
        *("pyproject.toml", "setup.py", "setup.cfg", "MANIFEST.in", "noxfile.py", "LICENSE"),
        *("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "PKG-INFO"),
    )
}


def test_the_rule_finds_the_files() -> None:
    assert {"snaptun_trio/py.typed", "snaptun_trio/_cli/_main.py"} <= IN_WHEEL
    assert f"{STEM}/snaptun_trio/_kernel/_rows.h" in IN_SDIST
    assert f"{STEM}/docs/index.rst" in IN_SDIST


def test_the_pure_wheel_has_the_package_and_nothing_else(tmp_path: Path) -> None:
    assert build("wheel", tmp_path, SNAPTUN_TRIO_BUILD="no") == IN_WHEEL


@pytest.mark.skipif(
    sys.platform != "linux" or not shutil.which(os.environ.get("CC", "cc")),
    reason="nothing is compiled here",
)
def test_the_compiled_wheel_has_the_compiled_part_beside_it(tmp_path: Path) -> None:
    assert build("wheel", tmp_path, SNAPTUN_TRIO_BUILD="yes") == IN_WHEEL | {COMPILED}


@pytest.mark.parametrize("compiled", ["yes", "no"])
def test_the_sdist_has_the_sources_wherever_it_is_made(compiled: str, tmp_path: Path) -> None:
    found = build("sdist", tmp_path, SNAPTUN_TRIO_BUILD=compiled)
    about = {name for name in found if name.startswith(f"{STEM}/snaptun_trio.egg-info/")}
    assert found - about == IN_SDIST
