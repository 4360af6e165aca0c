"""A call of every public function, by names, for what holds of all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only
from weightings import TABLE

import pama_ops as po


@dataclass
class PublicCall:
    """`options` with all of a function's tensors in them."""

    function: Callable[..., Any]
    options: dict[str, Any]
    differentiable: tuple[str, ...] = ()  # those of the options in which it is
    name: str = ""

    def __call__(self, **changes: Any) -> list[Tensor]:
        return tensors_in(self.function(**{**self.options, **changes}))

    def tensors(self) -> list[str]:
        """Names of the options that are one tensor."""
        return [name for name, x in self.options.items() if isinstance(x, Tensor)]


def tensors_in(x: Any) -> list[Tensor]:
    return [y for y in tree_leaves(x) if isinstance(y, Tensor)]


def copied(options: dict[str, Any]) -> dict[str, Any]:
    copies: dict[str, Any] = tree_map_only(Tensor, torch.clone, options)
    return copies


def backward(losses: list[Tensor], parameters: list[Tensor], **options: Any) -> list[Tensor]:
    """`pareto_backward`, with the `.grad` that it leaves."""
    leaves = [x.detach().requires_grad_() for x in parameters]
    weights = po.pareto_backward([(a * leaves[0]).sum() for a in losses], leaves, **options)
    return [weights, leaves[0].grad]


def accumulated(gram: Any, grads: Any) -> Tensor:
    """`gram_accumulate` into a copy, which requires no gradient."""
    with torch.no_grad():
        copy = tree_map_only(Tensor, torch.clone, gram)
    return po.gram_accumulate(copy, grads)


def public_calls() -> dict[str, PublicCall]:
    def grid(*shape: int, step: int = 3) -> Tensor:
        count = torch.Size(shape).numel()
        return ((torch.arange(count) * step) % 11 - 4).reshape(shape).float() / 8

    x, y = grid(2, 2, 6), grid(2, 2, 6, step=5)
    p, q, r, a = (grid(2, 6, step=k) for k in (2, 3, 7, 9))
    mask = torch.tensor([[1, 1, 0, 1, 1, 1], [0, 1, 1, 1, 0, 1]])
    cu = torch.tensor([0, 2, 6])
    gram = torch.tensor([[4.0, -1.0, 0.5], [-1.0, 2.0, 1.0], [0.5, 1.0, 3.0]], dtype=torch.float64)
    rows = [grid(5, step=k) for k in (2, 3, 7)]
    lists = [[x, None if i == 1 else x[:2]] for i, x in enumerate(rows)]
    weights = torch.tensor([0.5, 0.25, 0.25])
    token = {"mask": mask.float()}
    calls = {
        "gae": PublicCall(po.gae, {"rewards": x, "values": y, "last_values": x[..., 0], **token}),
        "gae, ragged": PublicCall(
            po.gae, {"rewards": x[0], "values": y[0], "mask": mask[0], "cu_seqlens": cu}
        ),
        "whiten": PublicCall(po.whiten, {"advantages": x, **token}),
        "group_normalize": PublicCall(
            po.group_normalize, {"rewards": p, "group_size": 3, "return_informative": True}
        ),
        "kl_divergence": PublicCall(
            po.kl_divergence, {"logp": p, "ref_logp": q, **token}, ("logp", "ref_logp")
        ),
        "ppo_loss": PublicCall(
            po.ppo_loss,
            {"logp": p, "old_logp": q, "advantages": a, "ref_logp": r, "kl_coef": 0.5,
             "normalizer": torch.tensor(4.0), **token},
            ("logp",),
        ),
        "ppo_loss, ragged": PublicCall(
            po.ppo_loss,
            {"logp": p[0], "old_logp": q[0], "advantages": a[0], "cu_seqlens": cu},
            ("logp",),
        ),
        "value_loss": PublicCall(
            po.value_loss,
            {"values": x, "returns": y, "old_values": y / 2, "normalizer": torch.tensor(4),
             **token},
            ("values",),
        ),
        "pama_weights": PublicCall(
            po.pama_weights, {"values": x[..., 0], "preference": weights[:2]}
        ),
        "duality_gap": PublicCall(po.duality_gap, {"gram": gram, "weights": weights}),
        "gram": PublicCall(po.gram, {"grads": rows}, ("grads",)),
        "gram of lists": PublicCall(po.gram, {"grads": lists}),
        "gram_accumulate": PublicCall(accumulated, {"gram": gram, "grads": lists}),
        "combine": PublicCall(
            po.combine, {"grads": rows, "weights": weights}, ("grads", "weights")
        ),
        "combine of lists": PublicCall(po.combine, {"grads": lists, "weights": weights}),
        "pareto_backward": PublicCall(
            backward, {"losses": [p[0], q[0]], "parameters": [r[0]]}
        ),
    }  # fmt: skip
    for reduction in ("token", "sequence", "gram", "batch"):
        options = {"advantages": x, "log_ratio": p, "reduction": reduction, **token}
        calls[f"pama_advantages by {reduction}"] = PublicCall(
            po.pama_advantages, {**options, "preference": [1, 3]}
        )
        calls[f"pama_advantages by {reduction} and preference"] = PublicCall(
            po.pama_advantages, {**options, "preference": torch.tensor([[1.0, 0.0], [1.0, 2.0]])}
        )
    for weighting in TABLE:
        options = {"gram": gram, **weighting.arguments}
        if weighting.takes_preference:
            options["preference"] = [1, 2, 3]
        if weighting.accepts("seed"):
            options["seed"] = torch.tensor(7)
        calls[weighting.name] = PublicCall(weighting.function, options)
    for name, call in calls.items():
        call.name = name
    return calls
