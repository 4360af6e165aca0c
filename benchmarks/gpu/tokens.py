"""The token door against its plain-PyTorch definition, and GAE against what is used today.

    python benchmarks/gpu/tokens.py [--results PATH]

N = 4, B = 256, T = 1024. Replays of captured graphs where a call can be captured; launches a call.
"""

from __future__ import annotations

import torch
from measure import Bench, Call
from torch import Tensor

import pama_ops as po
from pama_ops import reference

N, B, T = 4, 256, 1024
GAMMA, LAM = 1.0, 0.95


def loop(rewards: Tensor, values: Tensor) -> Tensor:
    """GAE a token at a time, over N and B at once."""
    last, out = torch.zeros_like(rewards[..., 0]), torch.empty_like(rewards)
    following = torch.zeros_like(last)
    for t in reversed(range(T)):
        last = rewards[..., t] + GAMMA * following - values[..., t] + GAMMA * LAM * last
        following = values[..., t]
        out[..., t] = last
    return out


def scan(rewards: Tensor, values: Tensor) -> Call | None:
    """GAE as torch's own associative scan, if this torch has one."""
    try:
        from torch._higher_order_ops.associative_scan import associative_scan
    except ImportError:
        return None

    def merge(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return a[0] * b[0], b[0] * a[1] + b[1]

    @torch.compile
    def call(rewards: Tensor, values: Tensor) -> Tensor:
        delta = rewards - values
        delta[..., :-1] += GAMMA * values[..., 1:]
        pairs = (torch.full_like(delta, GAMMA * LAM), delta.flip(-1))
        return associative_scan(merge, pairs, dim=-1, combine_mode="pointwise")[1].flip(-1)

    return lambda: call(rewards, values)


def definition(advantages: Tensor, mask: Tensor, log_ratio: Tensor) -> Call:
    """Theorem 1 on every token in plain PyTorch, float64."""
    rule = (reference.TOKEN, 0.2, 0.2, True, False)

    def call() -> tuple[Tensor, ...]:
        statistics = reference.pama_statistics(advantages, mask, log_ratio, None, None, *rule)
        return reference.pama_combine(advantages, mask, log_ratio, None, None, statistics, *rule)

    return call


def main() -> None:
    bench = Bench(__doc__)
    bench.copy_rate()
    rewards, values = torch.randn(2, N, B, T, device=bench.device)
    mask = torch.rand(B, T, device=bench.device) < 0.9
    log_ratio = 0.1 * torch.randn(B, T, device=bench.device)
    advantages = po.whiten(po.gae(rewards, values, mask).advantages, mask)

    def add(name: str, call: Call, graph: bool) -> None:
        result = bench.time(call, graph=graph)
        more = {"launches": bench.launches(call), "extra bytes": bench.extra_bytes(call)}
        bench.add({"what": name, "graph": graph and bench.on_gpu, **result, **more})

    for reduction in po.advantages.REDUCTIONS:
        add(
            f"pama_advantages, {reduction}",
            lambda r=reduction: po.pama_advantages(advantages, mask, log_ratio, reduction=r),
            True,
        )
    # It branches on values, which no graph can hold.
    add("definition in plain PyTorch, token", definition(advantages, mask, log_ratio), False)
    add("whiten", lambda: po.whiten(advantages, mask), True)
    add("gae", lambda: po.gae(rewards, values, gamma=GAMMA, lam=LAM), True)
    add("gae, a loop over tokens", lambda: loop(rewards, values), True)
    associative = scan(rewards, values) if bench.on_gpu else None
    if associative is None:
        bench.add({"what": "gae, associative_scan", "skipped": "needs a GPU and a torch with it"})
        return
    try:
        apart = (associative() - loop(rewards, values)).abs().max()
    except Exception as error:  # a prototype of torch's: report what it says and go on
        bench.add({"what": "gae, associative_scan", "skipped": f"torch: {str(error)[:200]}"})
        return
    print(f"associative_scan is {float(apart):.2g} from the loop")
    add("gae, associative_scan", associative, True)


if __name__ == "__main__":
    main()
