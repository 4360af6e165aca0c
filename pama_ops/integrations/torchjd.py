"""TorchJD (https://torchjd.org): its weightings here, ours there, and its loss scalarisers.

| from | to | by |
|---|---|---|
| a weighting of ours | TorchJD's autogram | `GramWeighting(po.upgrad)` |
| a weighting of ours | TorchJD's autojac, `jac_to_grad` | `GramAggregator(po.upgrad)` |
| a weighting of TorchJD | wherever we take one | `as_function(CRMOGMWeighting(...))` |
| a loss scalariser of TorchJD | weights of the losses | `loss_weights(DWA(), losses)` |
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor

from pama_ops.gradients import combine, gram

try:
    from torchjd.aggregation import GramianWeightedAggregator, Weighting
    from torchjd.linalg import Matrix, PSDMatrix
    from torchjd.scalarization import Scalarizer
except ImportError as error:
    raise ImportError(
        "pama_ops.integrations.torchjd needs TorchJD: pip install 'pama_ops[torchjd]'"
    ) from error

Function = Callable[[Tensor], Tensor]


def _named(function: object) -> str:
    """A weighting's name, with what `functools.partial` set."""
    name = getattr(getattr(function, "func", function), "__name__", repr(function))
    options = getattr(function, "keywords", {})
    return ", ".join([name, *(f"{key}={value}" for key, value in options.items())])


class GramWeighting(Weighting[PSDMatrix]):
    """A function from a Gram matrix to weights, as a TorchJD weighting.

    For TorchJD's autogram engine, or to compose with `<<` and to hook. Weights are constants:
    no gradient flows through them into the Gram matrix.

    Args:
        function: from G [n, n] to weights [n]: any weighting of this library, also with parameters
            set by `functools.partial`, or a function of your own.

    Raises:
        TypeError: if `function` cannot be called.

    >>> import pama_ops as po
    >>> GramWeighting(po.min_norm)(torch.tensor([[18.0, -22.0], [-22.0, 38.0]]))
    tensor([0.6000, 0.4000])
    """

    def __init__(self, function: Function) -> None:
        super().__init__()
        if not callable(function):
            raise TypeError(f"function must be a weighting, got {type(function).__name__}")
        self.function = function

    def forward(self, gramian: Tensor, /) -> Tensor:
        """The weights [n] of G [n, n]."""
        return self.function(gramian.detach())

    def extra_repr(self) -> str:
        """The function's name, for `repr`."""
        return _named(self.function)


class GramAggregator(GramianWeightedAggregator):
    """A function from a Gram matrix to weights, as a TorchJD aggregator.

    For `torchjd.autojac.jac_to_grad`, or to call on a Jacobian matrix [n, d]. The Gram matrix is
    that of `pama_ops.gram`, in float64, and the sum that of `pama_ops.combine`: what
    `pareto_backward` computes. With `optimize_gramian_computation=True` TorchJD sums Gram matrices
    in the gradients' dtype instead.

    Args:
        function: see `GramWeighting`.

    Raises:
        TypeError: if `function` cannot be called.

    >>> import pama_ops as po
    >>> GramAggregator(po.min_norm)(torch.tensor([[2.0, 0.0], [0.0, 1.0]]))
    tensor([0.4000, 0.8000])
    """

    def __init__(self, function: Function) -> None:
        super().__init__(GramWeighting(function))
        # `jac_to_grad` reports what this returns.
        self.weighting = self.gramian_weighting << _gram_of_rows

    def forward(self, matrix: Matrix, /) -> Tensor:
        """The weighted sum [d] of the rows of the Jacobian matrix [n, d]."""
        return cast("Tensor", combine(matrix.unbind(), self.weighting(matrix)))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.gramian_weighting.extra_repr()})"


def _gram_of_rows(matrix: Matrix) -> PSDMatrix:
    return cast("PSDMatrix", gram(matrix.detach().unbind()))


def as_function(weighting: Weighting[PSDMatrix] | GramianWeightedAggregator) -> Function:
    """A TorchJD weighting as a function from Gram matrices to weights.

    The result goes wherever this library takes a weighting: `pareto_backward(weighting=...)`. It
    takes leading dimensions, [..., n, n] to [..., n], by one call for each matrix, in order, which
    is what a stateful weighting sees. Hooks of the weighting run. No gradient flows through.

    Args:
        weighting: a weighting of Gram matrices, or an aggregator that has one.

    Raises:
        TypeError: for anything else, such as an aggregator that needs the Jacobian itself.

    >>> from torchjd.aggregation import PCGrad
    >>> as_function(PCGrad())(torch.eye(2))
    tensor([1., 1.])
    """
    if isinstance(weighting, GramianWeightedAggregator):
        weighting = weighting.gramian_weighting
    if not isinstance(weighting, Weighting):
        raise TypeError(
            "weighting must be a TorchJD weighting of Gram matrices, or an aggregator with one, "
            f"got {type(weighting).__name__}"
        )

    def function(gram: Tensor) -> Tensor:
        n = gram.shape[-1]
        with torch.no_grad():
            rows = [weighting(g).to(gram.dtype) for g in gram.reshape(-1, n, n)]
        weights = torch.stack(rows) if rows else gram.new_empty((0, n))
        return weights.view(gram.shape[:-1])

    return function


def loss_weights(scalarizer: Scalarizer, losses: Sequence[Tensor] | Tensor) -> Tensor:
    """The weights that a TorchJD loss scalariser (DWA, FAMO, STCH, …) gives to losses.

    w_i = ∂S/∂L_i, so that Σ w_i ∂L_i/∂θ is the gradient of S(L_1, …, L_n). To take them in
    `pareto_backward`, with its heads and features: `weighting=lambda _: loss_weights(s, losses)`.
    Where nothing but the gradient is wanted, `scalarizer(losses).backward()` needs one backward.

    One call of the scalariser, with all that it does: its state moves on, and parameters of its own
    (UW, IMTL-L) get their `.grad`. Methods such as `DWA.step` and `FAMO.update` stay the caller's.

    Args:
        scalarizer: from losses [n] to one number.
        losses: n one-element tensors, or a tensor [n].

    Returns:
        w, [n] in the losses' dtype, detached.

    Raises:
        TypeError: if `scalarizer` is none.

    >>> from torchjd.scalarization import Mean
    >>> loss_weights(Mean(), torch.tensor([1.0, 3.0]))
    tensor([0.5000, 0.5000])
    """
    if not isinstance(scalarizer, Scalarizer):
        raise TypeError(
            "scalarizer must be a torchjd.scalarization.Scalarizer, "
            f"got {type(scalarizer).__name__}"
        )
    if not isinstance(losses, Tensor):
        losses = torch.stack([loss.reshape(()) for loss in losses])
    with torch.enable_grad():
        values = losses.detach().requires_grad_()
        scalarizer(values).backward()
    assert values.grad is not None
    return values.grad
