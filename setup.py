# The compiled part, and nothing else: everything about the package stands in pyproject.toml.
#
# SNAPTUN_TRIO_BUILD=yes makes a missing compiler an error, =no leaves the compiled part out. Unset,
# a machine without a compiler gets the portable backend, and is told. SNAPTUN_TRIO_TEST_HOOKS=1
# builds in what the tests need to stand between the library and the kernel.

from __future__ import annotations

import os
import shutil
import sys

from setuptools import Extension, setup

BUILD = os.environ.get("SNAPTUN_TRIO_BUILD", "")
HOOKS = os.environ.get("SNAPTUN_TRIO_TEST_HOOKS") == "1"
if BUILD not in ("", "yes", "no"):
    sys.exit(f"SNAPTUN_TRIO_BUILD={BUILD}: it is yes, no or unset")

ROOM = "snaptun_trio/_kernel"
rows = Extension(
    "snaptun_trio._kernel._rows",
    sources=[f"{ROOM}/{name}.c" for name in ("_module", "_rows", "_peers", "_pool", "_send")],
    depends=[f"{ROOM}/_rows.h"],
    define_macros=[("SNAPTUN_TRIO_TEST_HOOKS", "1")] if HOOKS else [],
    extra_compile_args=["-std=c11", "-Wall", "-Wextra", "-fvisibility=hidden"]
    + (["-Werror"] if HOOKS else []),
    py_limited_api=True,
    # A failure is a warning then, and `snaptun_trio.backend` says what is used.
    optional=BUILD != "yes",
)
wanted = BUILD != "no" and sys.platform == "linux" and sys.implementation.name == "cpython"

# What an earlier build left is not this build's: where compiling fails now, it would pass for it.
BASE = "build/hooks" if HOOKS else "build/plain"
shutil.rmtree(BASE, ignore_errors=True)

options = {
    "build": {"build_base": BASE},
    "build_ext": {"force": True},
}
if wanted:
    # One wheel for every CPython from 3.11 on: the limited API of 3.11 is all that is used.
    options["bdist_wheel"] = {"py_limited_api": "cp311"}

setup(ext_modules=[rows] if wanted else [], options=options)
