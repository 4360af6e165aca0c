from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from properties import assert_independent_of_thread_count, assert_rounds
from strategies import Tokens, normal, tokens

import pama_ops as po
from pama_ops import _ops, reference


def drawn(data: st.DataObject, backend) -> tuple[Tokens, dict]:
    batch = data.draw(tokens(backend.device))
    n = batch.objectives
    last = batch.per_sequence(n) if data.draw(st.booleans()) else None
    options = {
        "gamma": data.draw(st.sampled_from([0.0, 0.9, 1.0])),
        "lam": data.draw(st.sampled_from([0.0, 0.95, 1.0])),
        "last_values": last,
        "cu_seqlens": batch.cu_seqlens,
    }
    return batch, options


@given(data=st.data())
def test_gae_is_its_definition(backend, data):
    batch, options = drawn(data, backend)
    rewards, values = batch.values(batch.objectives), batch.values(batch.objectives)
    got = po.gae(rewards, values, batch.mask, **options)
    args = (batch.mask, options["last_values"], batch.cu_seqlens, options["gamma"], options["lam"])
    want = reference.gae(rewards, values, *args)
    # What the recurrence adds up, token by token: the same recurrence over magnitudes.
    last = None if args[1] is None else args[1].double().abs()
    size = rewards.double().abs() + 2 * values.double().abs()
    slack, _ = reference.gae(size, torch.zeros_like(size), args[0], last, *args[2:])
    for g, w in zip(got, want, strict=True):
        assert g.is_contiguous()
        terms = 4 * batch.shape[-1] + 8
        assert_rounds(g, w, slack + values.double().abs().nan_to_num(), terms)


def test_gae_takes_the_widest_dtype(backend):
    x = torch.ones(1, 1, 2, device=backend.device)
    assert po.gae(x.half(), x.bfloat16()).advantages.dtype == torch.float32
    assert po.gae(x, x.double()).returns.dtype == torch.float64
    last = torch.ones(1, 1, dtype=torch.float64, device=backend.device)
    assert po.gae(x, x, last_values=last).advantages.dtype == torch.float64


def test_gae_cuts_masked_tokens_out(backend):
    """The result is that of the sequence without its masked tokens, to the bit on one backend."""
    generator = torch.Generator().manual_seed(0)
    mask = torch.rand(1, 200, generator=generator) < 0.5
    rewards, values = normal(2, 3, 1, 200, generator=generator, dtype=torch.float64)
    got = po.gae(*(x.to(backend.device) for x in (rewards, values, mask)))
    kept = po.gae(
        rewards[:, :, mask[0]].to(backend.device), values[:, :, mask[0]].to(backend.device)
    )
    for whole, part in zip(got, kept, strict=True):
        torch.testing.assert_close(whole[:, :, mask[0]], part, rtol=1e-13, atol=1e-13)
        assert bool((whole[:, :, ~mask[0]] == 0).all())


def test_gae_propagates_nan_inside_the_mask(backend):
    rewards = torch.zeros(1, 1, 5, device=backend.device)
    rewards[0, 0, 3] = torch.nan
    got = po.gae(rewards, torch.zeros_like(rewards), lam=0.5).advantages[0, 0]
    assert got.isnan().tolist() == [True, True, True, True, False]


@pytest.mark.parametrize("shape", [(2, 0, 5), (2, 3, 0), (1, 0, 0)])
def test_gae_of_an_empty_batch_is_empty(backend, shape):
    x = torch.ones(shape, device=backend.device)
    assert po.gae(x, x, torch.ones(shape[1:], device=backend.device)).advantages.shape == shape


def test_gae_is_independent_of_thread_count():
    generator = torch.Generator().manual_seed(1)
    rewards, values = normal(2, 3, 37, 300, generator=generator)
    mask = torch.rand(37, 300, generator=generator) < 0.8
    assert_independent_of_thread_count(lambda: po.gae(rewards, values, mask))


BAD = {
    "rewards": [
        (lambda a: {**a, "rewards": [1.0]}, TypeError, "rewards must be a torch.Tensor, got list"),
        (lambda a: {**a, "rewards": a["rewards"].long()}, TypeError, "rewards .* floating-point"),
        (lambda a: {**a, "rewards": a["rewards"][0]}, ValueError, r"rewards .*\[N, B, T\], got"),
        (lambda a: {**a, "rewards": a["rewards"][:0]}, ValueError, "at least one objective"),
    ],
    "values": [
        (
            lambda a: {**a, "values": a["values"][:1]},
            ValueError,
            r"values .*\[2, 3, 4\].*\[1, 3, 4\]",
        ),
    ],
    "mask": [
        (lambda a: {**a, "mask": a["mask"][:2]}, ValueError, r"mask .*\[3, 4\].*\[2, 4\]"),
        (lambda a: {**a, "mask": a["mask"] + 0j}, TypeError, "mask must be bool, integer or float"),
    ],
    "scalars": [
        (lambda a: {**a, "gamma": 1.5}, ValueError, r"gamma must lie in \[0, 1\], got 1.5"),
        (lambda a: {**a, "gamma": float("nan")}, ValueError, r"gamma must lie in \[0, 1\]"),
        (lambda a: {**a, "lam": -0.1}, ValueError, r"lam must lie in \[0, 1\]"),
        (lambda a: {**a, "lam": "1"}, TypeError, "lam must be a number, got str"),
        (lambda a: {**a, "last_values": torch.ones(2, 4)}, ValueError, r"last_values .*\[2, 3\]"),
    ],
    "cu_seqlens": [
        (lambda a: {**a, "cu_seqlens": torch.tensor([0, 4])}, ValueError, r"\[N, total\]"),
        (
            lambda a: {
                "rewards": a["rewards"][:, 0],
                "values": a["values"][:, 0],
                "cu_seqlens": torch.tensor([0.0, 4.0]),
            },
            TypeError,
            "cu_seqlens must be int32 or int64",
        ),
    ],
}


@pytest.mark.parametrize(
    ("change", "error", "message"), [c for cases in BAD.values() for c in cases]
)
def test_gae_names_the_bad_argument(backend, change, error, message):
    device = backend.device
    args = {
        "rewards": torch.ones(2, 3, 4, device=device),
        "values": torch.ones(2, 3, 4, device=device),
        "mask": torch.ones(3, 4, device=device),
    }
    with pytest.raises(error, match=message):
        po.gae(**change(args))


def test_gae_checks_values_before_it_writes(backend):
    x = torch.ones(1, 2, 2, device=backend.device)
    bad_mask = torch.tensor([[1.0, 1.0], [1.0, 0.5]], device=backend.device)
    bad_offsets = torch.tensor([0, 3, 2], device=backend.device)
    by_itself = {} if backend.checks_values else {"check_values": True}
    with pytest.raises(ValueError, match="mask must hold only 0 and 1, got other values in row 1"):
        po.gae(x, x, bad_mask, **by_itself)
    with pytest.raises(ValueError, match="cu_seqlens must rise from 0 to the 2 tokens"):
        po.gae(x[0], x[0], cu_seqlens=bad_offsets, **by_itself)


def test_gae_refuses_a_gradient(backend):
    values = torch.zeros(1, 1, 3, device=backend.device, requires_grad=True)
    out = po.gae(torch.ones(1, 1, 3, device=backend.device), values)
    with pytest.raises(RuntimeError, match=r"pama_ops\.gae is not differentiable"):
        out.advantages.sum().backward()


@pytest.mark.parametrize("ragged", [False, True])
def test_gae_passes_opcheck(ragged):
    shape = (2, 6) if ragged else (2, 3, 4)
    x = normal(shape)
    mask = torch.ones(shape[1:], dtype=torch.bool)
    cu = torch.tensor([0, 2, 6]) if ragged else None
    last = normal(2, 2 if ragged else 3)
    torch.library.opcheck(_ops.gae, (x, x, mask, last, cu, 0.9, 0.95))


def test_gae_compiles_whole():
    @torch.compile(fullgraph=True, backend="aot_eager")
    def compiled(rewards, values, mask):
        return po.gae(rewards, values, mask, gamma=0.99).advantages

    x, mask = normal(2, 3, 4), torch.ones(3, 4)
    torch.testing.assert_close(compiled(x, x, mask), po.gae(x, x, mask, gamma=0.99).advantages)
