# The project's files that say the same thing in several places: they do say the same.

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
NOXFILE = (ROOT / "noxfile.py").read_text(encoding="utf-8")
PRE_COMMIT = (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")
WORKFLOW = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")


def test_the_workflow_runs_on_each_supported_python() -> None:
    classifiers = " ".join(PYPROJECT["project"]["classifiers"])
    supported = re.findall(r"Python :: (3\.\d+)", classifiers)
    matrix = re.search(r"python: \[(.*)\]", WORKFLOW)
    assert matrix is not None
    assert re.findall(r'"(.*?)"', matrix[1]) == supported
    assert "run: .ci/run\n" in WORKFLOW


def test_pre_commit_has_the_tools_of_the_lint_session() -> None:
    wanted = re.findall(r'additional_dependencies: \["(.*)"\]', PRE_COMMIT)
    assert set(wanted) == set(PYPROJECT["dependency-groups"]["lint"])
    checkpoints = re.search(r'"(--enable=ASYNC[\w,]+)"', NOXFILE)
    assert checkpoints is not None
    assert f"flake8-async {checkpoints[1]}\n" in PRE_COMMIT


def test_pages_name_only_files_that_are_there() -> None:
    for page in ("README.md", "CONTRIBUTING.md", "SECURITY.md"):
        text = (ROOT / page).read_text(encoding="utf-8")
        for link in re.findall(r"\]\((?!https?:)([^)#]+)\)", text):
            assert (ROOT / link).exists(), f"{page}: {link}"
        for path in re.findall(r"`((?:docs|tests|snaptun_trio|\.ci)/[\w./]+)`", text):
            assert "_build" in path or (ROOT / path).exists(), f"{page}: {path}"
