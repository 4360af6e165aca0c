"""The token door against its plain-PyTorch definition, and GAE against what is used today.

    python benchmarks/gpu/tokens.py [--results PATH]

N = 4, B = 256, T = 1024. Replays of captured graphs where a call can be captured; launches a call.
Our own ops come first, and are all there is with --quick.
"""

from __future__ import annotations

import torch
from measure import Bench, Call
from torch import Tensor

import pama_ops as po
from pama_ops import reference

N, B, T = 4, 256, 1024
DRY = 2, 3, 16
CALLS = 8  # of a graph, for one call takes little longer than the start of a replay
GAMMA, LAM = 1.0, 0.95


def loop(rewards: Tensor, values: Tensor) -> Tensor:
    """GAE a token at a time, over N and B at once."""
    last, out = torch.zeros_like(rewards[..., 0]), torch.empty_like(rewards)
    following = torch.zeros_like(last)
    for t in reversed(range(rewards.shape[-1])):
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
    n, b, t = DRY if bench.arguments.dry else (N, B, T)
    rewards, values = torch.randn(2, n, b, t, device=bench.device)
    mask = torch.rand(b, t, device=bench.device) < 0.9
    log_ratio = 0.1 * torch.randn(b, t, device=bench.device)
    advantages = po.whiten(po.gae(rewards, values, mask).advantages, mask)
    old_logp = -torch.rand(b, t, device=bench.device)
    logp = (old_logp + log_ratio).requires_grad_()

    def add(name: str, call: Call, graph: bool, calls: int = 1) -> None:
        result = bench.time(call, graph=graph, calls=calls)
        more = {"launches": bench.launches(call), "extra bytes": bench.extra_bytes(call)}
        bench.add({"what": name, "graph": graph and bench.on_gpu, **result, **more})

    def policy() -> tuple[Tensor, ...]:
        loss = po.ppo_loss(logp, old_logp, advantages[0], mask).loss
        return torch.autograd.grad(loss, [logp])

    def chain() -> Tensor:
        """From rewards to the advantages that the policy optimises."""
        whitened = po.whiten(po.gae(rewards, values, mask).advantages, mask)
        return po.pama_advantages(whitened, mask, log_ratio).advantages

    add("gae", lambda: po.gae(rewards, values, gamma=GAMMA, lam=LAM), True, CALLS)
    add("whiten", lambda: po.whiten(advantages, mask), True, CALLS)
    for reduction in po.advantages.REDUCTIONS:
        add(
            f"pama_advantages, {reduction}",
            lambda r=reduction: po.pama_advantages(advantages, mask, log_ratio, reduction=r),
            True,
            CALLS,
        )
    add("ppo_loss, forward and backward", policy, True, CALLS)
    add("gae, whiten, pama_advantages", chain, True, CALLS)
    if bench.arguments.quick:
        return
    # It branches on values, which no graph can hold.
    add("definition in plain PyTorch, token", definition(advantages, mask, log_ratio), False)
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
