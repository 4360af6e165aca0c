"""The harness that runs CUDA kernels on the host, and what only it can show of them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from op_calls import WITHOUT_KERNELS, calls, run

from pama_ops import _dispatch

ROOT = Path(__file__).parent.parent
SEEDS = range(1, 4)


@pytest.fixture
def ops(emulated_library):
    namespace = torch.ops.pama_ops_emulated
    return {name: getattr(namespace, name).default for name in _dispatch.SCHEMAS}


def has_kernel(name):
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"pama_ops_emulated::{name}", "CPU")


def same(got, want):
    """Bit for bit, NaN at the same places."""
    return all(torch.equal(g.isnan(), w.isnan()) and torch.equal(g.nan_to_num(), w.nan_to_num())
               for g, w in zip(got, want, strict=True))  # fmt: skip


def test_every_op_has_a_cuda_kernel_that_runs_on_the_host(emulated_library):
    assert {name for name in _dispatch.SCHEMAS if not has_kernel(name)} == WITHOUT_KERNELS
    assert {name for name, _ in calls()} | WITHOUT_KERNELS == set(_dispatch.SCHEMAS)


@pytest.mark.parametrize("seed", SEEDS)
def test_kernels_do_not_depend_on_the_order_of_threads(ops, monkeypatch, seed):
    """Bit for bit: a missing barrier, or a sum in the order of arrival, would show."""
    for name, arguments in calls():
        if has_kernel(name):
            monkeypatch.delenv("PAMA_EMULATE_SEED", raising=False)
            want = run(ops[name], arguments)
            monkeypatch.setenv("PAMA_EMULATE_SEED", str(seed))
            assert same(run(ops[name], arguments), want), name


# The ops whose kernels come by the barriers of a file.
OPS = {
    "combine.cu": ["combine"],
    "gae.cu": ["gae"],
    "gram.cu": ["gram"],
    "gram_fragments.cuh": ["gram"],
    "gram_mma.cuh": ["gram"],
    "gram_partial.cuh": ["gram"],
    "gram_tiles.cuh": ["gram"],
    "pama_advantages_combine.cu": ["pama_combine"],
    "pama_advantages_statistics.cu": ["pama_statistics"],
    "reduce.cuh": ["ppo_loss", "whiten_apply"],
    "warp_team.cuh": ["min_norm"],
    "weights.cu": ["duality_gap", "min_norm", "pama_weights"],
    "whiten.cu": ["whiten_moments"],
}
BARRIERS = [
    pytest.param(path.name, number, line, id=f"{path.name}:{number}")
    for path in sorted((ROOT / "csrc/cuda").glob("*.cu*"))
    for number, line in enumerate(path.read_text().splitlines(), 1)
    if re.search(r"\b__sync(threads|warp)\(", line)
]


@pytest.mark.parametrize(("file", "number", "line"), BARRIERS)
def test_a_deleted_barrier_is_caught(ops, monkeypatch, file, number, line):
    """Guards the harness: the kernels without this barrier give other results under some seed, but
    for a few that say themselves that it takes a GPU to miss them."""
    mine = [call for call in calls() if call[0] in OPS[file]]
    if file in ("gram.cu", "gram_tiles.cuh"):
        monkeypatch.setenv("PAMA_GRAM_KERNEL", "plain")
    want = [run(ops[name], arguments) for name, arguments in mine]
    monkeypatch.setenv("PAMA_EMULATE_WITHOUT", f"{file}:{number}")

    def differs(name, arguments, expected):
        try:
            return not same(run(ops[name], arguments), expected)
        except RuntimeError as error:
            if "a barrier is not reached by all threads" not in str(error):
                raise
            return True

    caught = False
    for seed in SEEDS:
        monkeypatch.setenv("PAMA_EMULATE_SEED", str(seed))
        caught = caught or any(
            differs(name, arguments, expected)
            for (name, arguments), expected in zip(mine, want, strict=True)
        )
    assert caught == ("not shown on the host" not in line)


def test_every_kernel_waits_for_its_inputs_first():
    """One that did not would race with the kernel before it, on some GPUs only."""
    kernels = [
        kernel
        for path in (ROOT / "csrc").rglob("*.cu*")
        for kernel in re.findall(r"__global__[^{;]*\{\s*[^;]*;", path.read_text())
    ]
    assert len(kernels) > 20
    assert [x for x in kernels if not re.search(r"\{\s*wait_for_inputs\(\);", x)] == []


def under_sanitizers(*arguments):
    """Runs pytest in another process, on tensors whose surroundings the sanitizers watch."""
    compiler = os.environ.get("CXX", "c++")
    # With the library that throws: the sanitizer looks for it when it is loaded.
    preloaded = [
        subprocess.run(
            [compiler, f"-print-file-name={library}"], capture_output=True, text=True, check=True
        ).stdout.strip()
        for library in ("libasan.so", "libstdc++.so")
    ]
    environment = {
        **os.environ,
        "LD_PRELOAD": " ".join(preloaded),
        "ASAN_OPTIONS": "detect_leaks=0",  # Python's own
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "PAMA_EMULATED_LIBRARY": "_C_sanitized.so",
    }
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments],
        capture_output=True, text=True, env=environment, cwd=ROOT, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    assert re.search(r"^[1-9]\d* passed", result.stdout, re.MULTILINE), result.stdout


@pytest.mark.sanitized
def test_kernels_are_clean_under_the_address_and_undefined_behaviour_sanitizers():
    """Every op, on fixed inputs of several warps, blocks and tiles."""
    under_sanitizers(
        f"{__file__}::{test_kernels_do_not_depend_on_the_order_of_threads.__name__}[1]"
    )


@pytest.mark.sanitized
def test_kernels_are_clean_under_the_sanitizers_on_drawn_inputs():
    """Every property that hypothesis tests of an op, on the shapes, strides and dtypes it draws."""
    under_sanitizers("-m", "hypothesis", "-k", "emulated", "--hypothesis-profile", "few")
