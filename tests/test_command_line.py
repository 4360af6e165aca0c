"""`python -m pama_ops check | bench`: what a user runs to see whether it works here."""

from __future__ import annotations

import re
import types

import pytest
import torch
from op_calls import WITHOUT_KERNELS

from pama_ops import _bench, _dispatch, _library, _self_check
from pama_ops.__main__ import main


def test_check_reaches_every_op_and_passes(capsys):
    assert main(["check"]) == 0
    rows = {line.split()[0] for line in capsys.readouterr().out.splitlines() if line[:1].isalpha()}
    assert _dispatch.SCHEMAS.keys() - WITHOUT_KERNELS <= rows


def test_check_fails_on_an_op_that_is_off(monkeypatch, capsys):
    right = _self_check.reference.gae

    def off(*args):
        advantages, returns = right(*args)
        return advantages, returns + 1e-5

    monkeypatch.setattr(_self_check.reference, "gae", off)
    monkeypatch.setattr(_self_check, "DTYPES", [torch.float32])
    assert main(["check"]) == 1
    out = capsys.readouterr().out
    assert re.search(r"^gae .*BEYOND ITS BOUND$", out, re.MULTILINE)
    assert out.count("BEYOND ITS BOUND") == 1


def test_a_nan_where_the_definition_has_a_number_is_beyond_every_bound():
    got, want = torch.tensor([1.0, torch.nan]), torch.tensor([1.0, 2.0])
    assert _self_check._error(got, want, torch.ones(2)) == float("inf")
    assert _self_check._error(want, got, torch.ones(2)) == float("inf")


@pytest.mark.parametrize("gpu", [True, False])
def test_check_says_why_there_are_no_cuda_kernels_and_what_to_do(monkeypatch, capsys, gpu):
    monkeypatch.setattr(_library, "has_cuda", False)
    monkeypatch.setattr(_library, "why_no_cuda", "the CUDA kernels were not built: no nvcc")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(_self_check, "check", lambda: True)
    assert main(["check"]) == gpu  # a failure only where they are of use
    out = capsys.readouterr().out
    assert "not built: no nvcc" in out
    assert "PAMA_CUDA=1" in out


def test_a_library_that_does_not_load_says_why(monkeypatch, tmp_path):
    (tmp_path / "_C_cuda.so").write_text("no library")
    monkeypatch.setattr(_library, "PACKAGE", tmp_path)
    loaded, why = _library._load_cuda(types.SimpleNamespace(cuda=""))
    assert not loaded
    assert "file too short" in why


@pytest.mark.parametrize("cuda", [False, True])
@pytest.mark.parametrize("command", ["check", "bench", "info"])
def test_what_is_missing_is_said_by_every_command(command, cuda, monkeypatch, capsys):
    monkeypatch.setattr(_library, "extension", None)
    monkeypatch.setattr(_library, "has_cuda", cuda)
    monkeypatch.setattr(_library, "why_no_cpu", "pama_ops._C was not built")
    monkeypatch.setattr(_self_check, "check", lambda: True)
    monkeypatch.setattr(_bench, "bench", lambda: None)
    assert main([command]) == (command == "check")
    missing = "CPU kernels" if cuda else "kernels"
    assert f"No compiled {missing}: pama_ops._C was not built.\n" in capsys.readouterr().out


def test_bench_prints_a_share_of_a_copy(monkeypatch, capsys):
    monkeypatch.setattr(_bench, "BYTES", 1_000_000)
    assert main(["bench"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^copy .* 100%$", out, re.MULTILINE)
    assert re.search(r"^gram, min_norm, combine .*%$", out, re.MULTILINE)
