"""The harness that runs CUDA kernels on the host, and what only it can show of them."""

from __future__ import annotations

import os
import re
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


def test_kernels_do_not_depend_on_the_order_of_threads(ops, monkeypatch):
    """Bit for bit: a missing barrier, or a sum in the order of arrival, would show."""
    mine = [(name, arguments) for name, arguments in calls() if has_kernel(name)]
    want = [run(ops[name], arguments) for name, arguments in mine]
    for seed in SEEDS:
        monkeypatch.setenv("PAMA_EMULATE_SEED", str(seed))
        for (name, arguments), expected in zip(mine, want, strict=True):
            assert same(run(ops[name], arguments), expected), f"{name}, seed {seed}"
