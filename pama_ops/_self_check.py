"""`python -m pama_ops check`: every op against its float64 definition, where it will be used.

The public functions are called, and each dispatcher op that they reach is compared with
`pama_ops.reference` on the same arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

import pama_ops as po
from pama_ops import _dispatch, reference
from pama_ops._rounding import bound

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
N, B, T = 3, 4, 37  # no multiple of a vector, a warp or a block


class Comparison(TorchDispatchMode):
    """Compares every op of the library that is called under it; `errors` in units of the bound."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.errors: dict[str, float] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        """Run the op, then its definition on copies of the arguments."""
        namespace, name = func._schema.name.split("::")
        if namespace != _dispatch.NAMESPACE:
            return func(*args, **(kwargs or {}))
        before = tree_map_only(Tensor, lambda x: x.detach().cpu().clone(), args)
        result = func(*args, **(kwargs or {}))
        got, want = _listed(args[0] if result is None else result), definition(name, before)
        bounds = [bound(name, before, w, g.dtype) for g, w in zip(got, want, strict=True)]
        worst = max(map(_error, got, want, bounds), default=0.0)
        self.errors[name] = max(worst, self.errors.get(name, 0.0))
        return result


def _listed(x: Any) -> list[Tensor]:
    return [x] if isinstance(x, Tensor) else list(x)


def definition(name: str, args: Sequence[Any]) -> list[Tensor]:
    """The float64 results of an op; for one that writes its first argument, that argument."""
    function = reference.WEIGHTINGS.get(name) or getattr(reference, name)
    if name == "combine_into":
        out = [x.double() for x in args[0]]
        function(out, *args[1:])
        return out
    result = function(*args)
    return _listed(args[0] if result is None else result)


def _error(got: Tensor, want: Tensor, limit: Tensor) -> float:
    """The largest error over its bound; infinite where shapes or what is not finite differ."""
    got, want = got.detach().cpu().double(), want.double()
    if got.shape != want.shape or not bool((got.isfinite() == want.isfinite()).all()):
        return float("inf")
    finite = want.isfinite()
    error = (got - want).abs()[finite] / limit.expand_as(want)[finite]
    return float(error.max()) if error.numel() else 0.0


# --- the calls ----------------------------------------------------------------------------------


def exercise(device: torch.device, dtype: torch.dtype) -> None:
    """Call every public function once or more, padded and ragged."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype).to(device)

    mask = (torch.rand((B, T), generator=generator) < 0.8).to(device)
    for cu_seqlens in (None, torch.tensor([0, T, T + 5, 3 * T, B * T], device=device)):
        shape = (B, T) if cu_seqlens is None else (B * T,)
        _token_space(draw, shape, mask.view(shape), cu_seqlens)
    po.group_normalize(draw(N, 4 * B), 4, return_informative=True)
    for n in (2, 3, 8, 12):
        _gradient_space(draw, n)
    po.pama_weights(draw(B, N))


Draw = Callable[..., Tensor]


def _token_space(
    draw: Draw, shape: tuple[int, ...], mask: Tensor, cu_seqlens: Tensor | None
) -> None:
    cu: dict[str, Any] = {"cu_seqlens": cu_seqlens}
    values = draw(N, *shape).requires_grad_()
    advantages, returns = po.gae(draw(N, *shape), values.detach(), mask, **cu)
    advantages = po.whiten(advantages, mask, **cu)
    old_logp = -draw(*shape).abs()
    logp = (old_logp + 0.3 * draw(*shape)).requires_grad_()
    known = (torch.arange(N * B, device=advantages.device) % 3 > 0).view(N, B).to(advantages.dtype)
    for reduction in po.advantages.REDUCTIONS:
        for preference in (known, None):
            step = po.pama_advantages(
                advantages, mask, logp.detach() - old_logp, reduction=reduction,
                preference=preference, **cu,
            )  # fmt: skip
    for aggregate in po.losses.AGGREGATES:
        loss = po.ppo_loss(
            logp, old_logp, step.advantages, mask, aggregate=aggregate, ref_logp=old_logp,
            kl_coef=0.1, **cu,
        ).loss  # fmt: skip
        loss.backward()
    old_values = values.detach() + draw(N, *shape) / 4
    po.value_loss(values, returns, mask, old_values=old_values, **cu).sum().backward()
    for estimator in po.losses.ESTIMATORS:
        po.kl_divergence(logp, old_logp, mask, estimator=estimator).sum().backward()


def _gradient_space(draw: Draw, n: int) -> None:
    shapes = ((7,), (33, 65), (4, 3, 2))
    grads = [[draw(*shape) for shape in shapes] for _ in range(n)]
    gram = po.gram(grads)
    po.gram_accumulate(gram, grads)
    weights = po.min_norm(gram)
    out = po.combine(grads, weights)
    po.combine(grads, weights, out=out)
    basis = torch.eye(n, dtype=draw().dtype, device=gram.device) + draw(n, n) / (4 * n)
    small = po.gram(list(basis), dtype=basis.dtype)
    for name in reference.WEIGHTINGS:
        getattr(po, name)(small)
    po.duality_gap(small, po.min_norm(small))


def devices() -> Iterator[torch.device]:
    yield torch.device("cpu")
    for i in range(torch.cuda.device_count()):
        yield torch.device("cuda", i)


def check() -> bool:
    """Print a table of errors in units of their bounds; whether all lie within."""
    good = True
    for device in devices():
        errors: list[dict[str, float]] = []
        for dtype in DTYPES:
            with Comparison() as comparison:
                exercise(device, dtype)
            errors.append(comparison.errors)
        titles = [str(dtype).removeprefix("torch.") for dtype in DTYPES]
        print(f"{device!s:<24}" + "".join(f"{title:>12}" for title in titles))
        for name in sorted(errors[0]):
            row = [e[name] for e in errors]
            within = all(e <= 1 for e in row)
            good &= within
            cells = "".join(f"{e:>12.2g}" for e in row)
            print(f"{name:<24}{cells}" + ("" if within else "  BEYOND ITS BOUND"))
        print()
    print("largest error of each op in units of what rounding allows: " + ("ok" if good else "BAD"))
    return good
