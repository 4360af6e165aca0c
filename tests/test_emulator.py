"""The harness that runs CUDA kernels on the host, and what only it can show of them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from calls import calls, run

from pama_ops import _schemas

ROOT = Path(__file__).parent.parent
SEEDS = range(1, 4)


@pytest.fixture
def ops(emulated_library):
    namespace = torch.ops.pama_ops_emulated
    return {name: getattr(namespace, name).default for name in _schemas.SCHEMAS}


def has_kernel(name):
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"pama_ops_emulated::{name}", "CPU")


def same(got, want):
    """Bit for bit, NaN at the same places."""
    return all(torch.equal(g.isnan(), w.isnan()) and torch.equal(g.nan_to_num(), w.nan_to_num())
               for g, w in zip(got, want, strict=True))  # fmt: skip


def test_every_op_has_a_cuda_kernel_that_runs_on_the_host(emulated_library):
    missing = [name for name in _schemas.SCHEMAS if not has_kernel(name)]
    assert missing == ["refuse_gradient"]  # it raises or does nothing
    assert {name for name, _ in calls()} == set(_schemas.SCHEMAS)


@pytest.mark.parametrize("seed", SEEDS)
def test_kernels_do_not_depend_on_the_order_of_threads(ops, monkeypatch, seed):
    """Bit for bit: a missing barrier, or a sum in the order of arrival, would show."""
    for name, arguments in calls():
        if has_kernel(name):
            monkeypatch.delenv("PAMA_EMULATE_SEED", raising=False)
            want = run(ops[name], arguments)
            monkeypatch.setenv("PAMA_EMULATE_SEED", str(seed))
            assert same(run(ops[name], arguments), want), name


@pytest.mark.parametrize(
    ("file", "barrier", "op"),
    [("reduce.cuh", 1, "whiten_moments"), ("pama_advantages.cuh", -1, "pama_combine")],
)
def test_a_deleted_barrier_is_caught(ops, monkeypatch, file, barrier, op):
    """Guards the harness: the kernels without this barrier give other results under some seed."""
    lines = (ROOT / "csrc/kernels" / file).read_text().splitlines()
    barriers = [i for i, line in enumerate(lines, 1) if "__syncthreads();" in line]
    mine = [arguments for name, arguments in calls() if name == op]
    want = [run(ops[op], arguments) for arguments in mine]
    monkeypatch.setenv("PAMA_EMULATE_WITHOUT", f"{file}:{barriers[barrier]}")
    caught = 0
    for seed in SEEDS:
        monkeypatch.setenv("PAMA_EMULATE_SEED", str(seed))
        caught += sum(
            not same(run(ops[op], arguments), expected)
            for arguments, expected in zip(mine, want, strict=True)
        )
    assert caught


def test_kernels_are_clean_under_the_address_and_undefined_behaviour_sanitizers():
    """Every op, in another process, on tensors whose surroundings the sanitizer watches."""
    compiler = os.environ.get("CXX", "c++")
    libasan = subprocess.run(
        [compiler, "-print-file-name=libasan.so"], capture_output=True, text=True, check=True
    ).stdout.strip()
    environment = {
        **os.environ,
        "LD_PRELOAD": libasan,
        "ASAN_OPTIONS": "detect_leaks=0",  # Python's own
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "PAMA_EMULATED_LIBRARY": "_C_sanitized.so",
    }
    test = f"{__file__}::{test_kernels_do_not_depend_on_the_order_of_threads.__name__}[1]"
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", test],
        capture_output=True, text=True, env=environment, cwd=ROOT, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    assert "1 passed" in result.stdout
