"""What only a GPU can show: streams, graphs, synchronisation, sizes, memory."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from properties import ROUNDOFF
from strategies import normal
from torch import Tensor

import pama_ops as po
from pama_ops import _library, _rounding, _self_check, reference

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]
N, B, T = 4, 16, 129
SHAPES = [(257, 64), (64,), (33, 3, 3), (1,), (10_001,)]
CUDA = torch.device("cuda")

Results = list[Tensor]


class Door(NamedTuple):
    """One of the two ways from N objectives to one, as a call on fixed inputs."""

    inputs: list[Tensor]
    call: Callable[[], Results]


def token_door(device: torch.device = CUDA) -> Door:
    """From rewards to the gradient of the policy's and the value heads' losses."""
    rewards, values = normal(2, N, B, T, device=device)
    mask = torch.rand(B, T, device=device) < 0.8
    old_logp = -torch.rand(B, T, device=device)
    logp = (old_logp + 0.1 * normal(B, T, device=device)).requires_grad_()
    heads = values.clone().requires_grad_()

    def call() -> Results:
        advantages, returns = po.gae(rewards, values, mask)
        advantages = po.whiten(advantages, mask)
        step = po.pama_advantages(advantages, mask, logp.detach() - old_logp)
        by_gram = po.pama_advantages(
            advantages, mask, reduction="gram", preference=[1.0, 2.0, 1.0, 1.0]
        )
        policy = po.ppo_loss(
            logp, old_logp, step.advantages, mask, ref_logp=old_logp, kl_coef=0.1, normalizer=7.0
        )
        value = po.value_loss(heads, returns, mask, old_values=values)
        slopes = torch.autograd.grad(policy.loss + value.sum(), [logp, heads])
        return [*step[:2], by_gram.advantages, by_gram.weights, *policy, value, *slopes]

    return Door([rewards, values, old_logp, logp.detach()], call)


def gradient_door(device: torch.device = CUDA, dtype: torch.dtype = torch.float32) -> Door:
    """From gradients to their combination, under a few weightings."""
    grads = [[normal(s, device=device).to(dtype) for s in SHAPES] for _ in range(N)]

    def call() -> Results:
        gram = po.gram(grads)
        weights = po.min_norm(gram, preference=[1.0, 2.0, 3.0, 4.0])
        others = [po.upgrad(gram), po.cagrad(gram), po.aligned_mtl(gram), po.imtl_g(gram)]
        combined = po.combine(grads, weights)
        assert isinstance(combined, list)
        return [gram, weights, *others, po.duality_gap(gram, weights), *combined]

    return Door([x for row in grads for x in row], call)


def backward_door(device: torch.device = CUDA) -> Door:
    """pareto_backward through a small network, with and without a `.grad` to add to."""
    layers = torch.nn.Linear(32, 64), torch.nn.Tanh(), torch.nn.Linear(64, N)
    model = torch.nn.Sequential(*layers).to(device)
    x = normal(128, 32, device=device)
    parameters = list(model.parameters())

    def call() -> Results:
        for p in parameters:
            p.grad = None
        for _ in range(2):
            weights = po.pareto_backward(model(x).square().mean(0), parameters)
        return [weights, *(p.grad.clone() for p in parameters if p.grad is not None)]

    return Door([x], call)


DOORS = [token_door, gradient_door, backward_door]


def bits(results: Results) -> list[bytes]:
    return [x.detach().cpu().flatten().view(torch.uint8).numpy().tobytes() for x in results]


def redraw(door: Door) -> None:
    """Other values in the same memory."""
    with torch.no_grad():
        for x in door.inputs:
            x.copy_(x.flip(0) * 0.9)


def test_the_kernels_are_there():
    assert _library.has_cuda, _library.why_no_cuda


@pytest.mark.parametrize("make", [token_door, gradient_door])
def test_bits_are_those_of_every_run_and_stream(make):
    door = make()
    want = bits(door.call())
    streams = [torch.cuda.Stream() for _ in range(4)]
    for i in range(100):
        with torch.cuda.stream(streams[i % 4]):
            streams[i % 4].wait_stream(torch.cuda.default_stream())
            got = bits(door.call())
        assert got == want, f"run {i} differs"


def test_concurrent_streams_do_not_disturb_each_other():
    doors = [gradient_door() for _ in range(4)]
    want = [bits(door.call()) for door in doors]
    streams = [torch.cuda.Stream() for _ in doors]
    torch.cuda.synchronize()
    got = []
    for door, stream in zip(doors, streams, strict=True):
        with torch.cuda.stream(stream):
            got.append(door.call())
    torch.cuda.synchronize()
    assert [bits(x) for x in got] == want


def test_work_is_queued_on_the_current_stream():
    """Inputs that a slow stream is still to write are read after they are written."""
    rows = [torch.zeros(1 << 20, device=CUDA) for _ in range(2)]
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)
        for i, x in enumerate(rows):
            x.fill_(i + 1.0)
        gram = po.gram(rows)
    stream.synchronize()
    assert (gram / (1 << 20)).tolist() == [[1, 2], [2, 4]]


@pytest.mark.parametrize("make", DOORS)
def test_nothing_waits_for_the_gpu(make):
    door = make()
    door.call()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        door.call()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("make", DOORS)
def test_a_captured_graph_replays_on_changed_inputs(make):
    door = make()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        door.call()
        door.call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = door.call()
    for _ in range(3):
        redraw(door)
        graph.replay()
        torch.cuda.synchronize()
        got = bits(captured)
        assert got == bits(door.call())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("start", [1, 3, 5])
def test_views_at_odd_addresses_give_what_aligned_ones_do(dtype, start):
    size = 10_007
    aligned = [normal(size, device=CUDA).to(dtype) for _ in range(3)]
    odd = []
    for i, x in enumerate(aligned):
        view = torch.empty(size + 16, device=CUDA, dtype=dtype)[start + i : start + i + size]
        odd.append(view.copy_(x))
    want = reference.gram([x.cpu() for x in aligned], 3)
    limit = _rounding.bound("gram", [[x.cpu() for x in aligned], 3], want, torch.float64)
    assert bool(((po.gram(odd).cpu() - want).abs() <= limit).all())
    weights = torch.tensor([0.5, 0.3, 0.2], device=CUDA, dtype=torch.float64)
    assert bits([po.combine(odd, weights)]) == bits([po.combine(aligned, weights)])


def test_more_than_2_to_the_31_elements():
    size = 2**31 + 4099
    if torch.cuda.mem_get_info()[0] < 4.5 * 2 * size:
        pytest.skip("needs 20 GB of free GPU memory")
    rows = [torch.zeros(size, device=CUDA, dtype=torch.bfloat16) for _ in range(2)]
    for i, x in enumerate(rows):
        x[:3] = i + 1.0
        x[2**31 - 2 :] = i + 2.0  # on both sides of 2^31
    tail = size - (2**31 - 2)
    want = [[3 + 4 * tail, 6 + 6 * tail], [6 + 6 * tail, 12 + 9 * tail]]
    assert po.gram(rows).tolist() == want  # small integers: exact
    combined = po.combine(rows, torch.tensor([1.0, -1.0], device=CUDA))
    assert combined[:3].tolist() == [-1.0, -1.0, -1.0]
    assert bool((combined[2**31 - 2 :] == -1.0).all())
    assert not bool(combined[3 : 2**31 - 2].any())


@pytest.mark.parametrize("make", DOORS)
def test_memory_is_flat_over_1000_calls(make):
    door = make()
    for _ in range(10):
        door.call()
    torch.cuda.synchronize()
    gc.collect()  # what earlier tests left behind would be freed meanwhile
    before = torch.cuda.memory_allocated()
    for _ in range(1000):
        door.call()
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() == before


@pytest.mark.parametrize("n", [2, 8, 16, 32])
def test_scratch_does_not_grow_with_the_gradients(n):
    """`gram` and `combine` into a given tensor take O(n² + grid), whatever the size."""

    def peak(size: int) -> int:
        rows = [torch.rand(size, device=CUDA) for _ in range(n)]
        out = torch.empty_like(rows[0])
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        po.combine(rows, po.min_norm(po.gram(rows)), out=out)
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before

    peak(1 << 22)
    # The grid is full at both sizes: the scratch is the same to the byte.
    assert peak(1 << 22) == peak(1 << 24)
    blocks = 528  # at most, on any GPU: csrc/cuda/gram.cu
    entries = 8 * 8 * (n // 8 + 1) ** 2
    assert peak(1 << 24) <= 8 * blocks * entries + 8 * n * n + (1 << 16)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("make", [token_door, gradient_door])
def test_tensors_need_not_be_on_the_current_device(make):
    torch.manual_seed(0)
    door = make(torch.device("cuda", 1))
    with torch.cuda.device(0):
        got = door.call()
        assert all(x.device.index == 1 for x in got)
        assert torch.cuda.current_device() == 0
    with torch.cuda.device(1):
        assert bits(door.call()) == bits(got)


@pytest.mark.parametrize("dtype", list(ROUNDOFF))
def test_every_op_is_within_its_bound(dtype):
    with _self_check.Comparison() as comparison:
        _self_check.exercise(CUDA, dtype)
    assert not {name: e for name, e in comparison.errors.items() if e > 1}
