"""Installs that take minutes: `make test-install`. They need an index, or wheels that pip finds."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import source_tree
import torch
from source_tree import Environment


@pytest.fixture
def same_torch(tmp_path: Path) -> dict[str, str]:
    """Isolated builds take this torch, not the newest."""
    constraint = tmp_path / "constraint.txt"
    constraint.write_text(f"torch=={torch.__version__.partition('+')[0]}\n")
    return {"PIP_CONSTRAINT": str(constraint), "PIP_BUILD_CONSTRAINT": str(constraint)}


def test_the_package_is_built_from_its_sdist_alone_and_passes_check(tmp_path, same_torch):
    """As `python -m build` does."""
    source = source_tree.copy(tmp_path / "source")
    subprocess.run(
        [sys.executable, "-c", "import setuptools.build_meta as b; b.build_sdist('dist')"],
        cwd=source, capture_output=True, check=True,
    )  # fmt: skip
    (sdist,) = (source / "dist").iterdir()
    here = Environment(tmp_path / "environment")
    run = here.pip("install", "--no-deps", str(sdist), **same_torch)
    assert run.returncode == 0, run.stdout
    run = here.run("-m", "pama_ops", "check", cwd=tmp_path)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "No compiled kernels" not in run.stdout
    assert not run.stderr
    here.pip("uninstall", "--yes", "pama_ops")
    assert not [path for path in here.site.rglob("*") if "pama" in path.name]


def test_isolated_builds_follow_each_other_in_one_folder(tmp_path, same_torch):
    """The CMake, ninja and torch of the one before are gone."""
    source = source_tree.small(tmp_path / "source")
    here = Environment(tmp_path / "environment")
    for options in ["--editable"], ["--editable"], []:
        run = here.pip("install", "--no-deps", *options, str(source), **same_torch)
        assert run.returncode == 0, run.stdout
        assert re.search(r"Successfully installed pama_ops-[\d.]+$", run.stdout, re.MULTILINE)
        assert "built by" in here.run("-m", "pama_ops", "info", cwd=tmp_path).stdout
