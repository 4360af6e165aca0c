"""Token space: from per-token rewards of N objectives to one advantage that a trainer takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, overload

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from pama_ops import _agreement as agreement
from pama_ops import _checks as check
from pama_ops import _ops as ops
from pama_ops._autograd import constant
from pama_ops._dispatch import call
from pama_ops.reference.pama import by_sequence, of_own_tokens

REDUCTIONS = ("token", "sequence", "gram", "batch")


class GAE(NamedTuple):
    """Advantages and returns of `gae`, each shaped like its rewards."""

    advantages: Tensor
    returns: Tensor


class GroupAdvantages(NamedTuple):
    """Result of `group_normalize` with `return_informative`, each shaped like its rewards.

    Attributes:
        advantages: what it returns without.
        informative: bool, whether the reward applies and its group has unequal rewards.
    """

    advantages: Tensor
    informative: Tensor


class PAMAStep(NamedTuple):
    """Result of `pama_advantages`.

    Attributes:
        advantages: Ā, shape [B, T] (ragged: [total]): what the trainer optimises.
        weights: c, shape [N] for "gram" and "batch", [N, B] for "sequence", [N, B, T] for "token";
            with a preference [N, B] also [N, B] for "gram" and "batch".
        gram: float64 [N, N] for "gram", else None.
        optimum: s* = Σ c_i a_i of Theorem 1, shape [B, T], [B] or [] as the weights without their
            N; None for "gram".
        active: bool [N]: whether the objective has a nonzero I(A) anywhere in the batch where a
            preference [N, B] does not drop it.
    """

    advantages: Tensor
    weights: Tensor
    gram: Tensor | None
    optimum: Tensor | None
    active: Tensor


def gae(
    rewards: Tensor,
    values: Tensor,
    mask: Tensor | None = None,
    *,
    gamma: float = 1.0,
    lam: float = 0.95,
    last_values: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    check_values: bool = False,
) -> GAE:
    """Generalised advantage estimates of N objectives at once, in one pass.

    δ_t = r_t + γ V_{t+1} − V_t,  A_t = δ_t + γ λ A_{t+1},  return R_t = A_t + V_t,

    where t + 1 is the next position whose mask is 1: a masked position behaves as if it were cut
    out of the sequence, wherever it stands, and nothing written there (NaN included) is read.
    Recurrences run in float64 and are rounded once. Bits do not depend on the number of threads.

    Args:
        rewards: [N, B, T], any floating dtype and strides (a permuted [B, T, N] is not copied).
        values: V, same shape; dtypes may differ.
        mask: [B, T], bool, integer or float 0/1; 1 marks response tokens. None is all ones.
        gamma: discount in [0, 1].
        lam: λ in [0, 1].
        last_values: [N, B], V after each sequence's last unmasked token. None is 0.
        cu_seqlens: int32 or int64 [B + 1]: the arrays are ragged, [N, total] and [total], and
            sequence b is tokens cu_seqlens[b] to cu_seqlens[b + 1].
        check_values: check the values of `mask` and `cu_seqlens` on a GPU too (synchronises; on a
            CPU they always are).

    Returns:
        `GAE(advantages, returns)`: each shaped like `rewards`, contiguous, in the widest dtype
        given (at least float32), 0 at masked positions.

    Raises:
        TypeError, ValueError: naming the argument, what came and what is wanted.
        RuntimeError: on `backward()` through the result, which is not differentiable.

    Complexity: O(N B T) time; on a GPU one launch, O(T / 1024) steps.
    Source: Schulman et al., arXiv 1506.02438, eq. 16.

    >>> rewards = torch.tensor([[[0.0, 0.0, 1.0]]])
    >>> gae(rewards, torch.zeros(1, 1, 3), gamma=1.0, lam=0.5).advantages
    tensor([[[0.2500, 0.5000, 1.0000]]])
    """
    gamma, lam = check.unit("gamma", gamma), check.unit("lam", lam)
    arguments = rewards, values, mask, last_values, cu_seqlens, gamma, lam
    out = GAE(*call(ops.gae, *arguments, check_values=check_values))
    return constant("gae", out, rewards, values, last_values, mask)


def whiten(
    advantages: Tensor,
    mask: Tensor | None = None,
    *,
    eps: float = 1e-8,
    group: ProcessGroup | None = None,
    cu_seqlens: Tensor | None = None,
    check_values: bool = False,
) -> Tensor:
    """Whiten each objective over its masked tokens (or sequences).

    (x − μ_i) · (σ_i² + ε)^(−½) · m, with μ_i and the unbiased σ_i² over the positions where m = 1,
    in float64 by merging the moments of each sequence (Chan's formula, no cancellation).

    Args:
        advantages: [N, B, T], or [N, B] to whiten sequence scores (mask then [B]).
        mask: [B, T], bool, integer or float 0/1; None is all ones.
        eps: ε > 0, added to the variance.
        group: process group whose ranks hold disjoint tokens of one batch; 3N numbers travel, and
            on a CPU, and on a GPU with `check_values`, a header of two: all ranks raise where they
            disagree in an argument that is to be the same, or where one refuses its own.
        cu_seqlens: ragged [N, total], see `gae`.
        check_values: see `gae`.

    Returns:
        Same shape, contiguous, at least float32, 0 at masked positions. One token alone gives 0.

    Raises:
        TypeError, ValueError: naming the argument, what came and what is wanted.
        RuntimeError: on `backward()` through the result, which is not differentiable.

    Complexity: O(N B T), two passes. Source: Chan, Golub & LeVeque 1983 (moments).

    >>> whiten(torch.tensor([[[1.0, 3.0, 9.0]]]), torch.tensor([[1, 1, 0]]))
    tensor([[[-0.7071,  0.7071,  0.0000]]])
    """
    agreement.check_group(group)
    with agreement.all_ranks_raise(advantages, group, wait=check_values) as ranks:
        check_values = check.flag("check_values", check_values)
        x = check.floating("advantages", advantages)
        of_scores = x.dim() == 2 and cu_seqlens is None
        if of_scores:  # one row of B scores per objective
            if mask is not None:
                check.token_mask(mask, x.shape[1:], "advantages", x.device)
                mask = mask.unsqueeze(0)
            x = x.unsqueeze(1)
        eps = check.positive("eps", eps)
        if group is None and not torch.compiler.is_compiling() and x.numel() == 0:
            # The moments of any number of objectives, for nothing, might not fit.
            check.tokens("advantages", x, mask, cu_seqlens, objectives=True)
            if check_values:
                check.token_values(mask, cu_seqlens, x.shape[-1])
            empty = x.new_empty(advantages.shape, dtype=ops.result_dtype(x))
            return constant("whiten", empty, advantages, mask)
        moments = call(ops.whiten_moments, x, mask, cu_seqlens, check_values=check_values)
        if group is not None:
            ranks.must_agree(
                [x],
                lambda _: {
                    "the function": "whiten", "the number of objectives": len(x), "eps": eps,
                },
            )  # fmt: skip
    moments = moments.unsqueeze(0) if group is None else agreement.gathered(moments, group)
    out: Tensor = ops.whiten_apply(x, mask, cu_seqlens, moments, eps)
    return constant("whiten", out.squeeze(1) if of_scores else out, advantages, mask)


@overload
def group_normalize(
    rewards: Tensor, group_size: int, *, eps: float = ..., return_informative: Literal[False] = ...
) -> Tensor: ...


@overload
def group_normalize(
    rewards: Tensor, group_size: int, *, eps: float = ..., return_informative: Literal[True]
) -> GroupAdvantages: ...


def group_normalize(
    rewards: Tensor, group_size: int, *, eps: float = 1e-4, return_informative: bool = False
) -> Tensor | GroupAdvantages:
    """Advantages relative to the group of completions of one prompt (GRPO, GDPO).

    (r − μ_g) / (σ_g + ε) with the unbiased σ_g, over each run of `group_size` entries of the last
    dimension. NaN marks a reward that does not apply: it is left out and returned as 0.

    Args:
        rewards: [N, B] or [B], floating, any strides; B a multiple of `group_size`.
        group_size: completions of one prompt, consecutive.
        eps: ε >= 0, added to the deviation.
        return_informative: whether to tell as well where a reward says anything: not where it is
            NaN, nor in a group whose other rewards are NaN or all equal to it (exactly). A 0 there
            means "nothing known", where elsewhere it means "average": as a `preference` of
            `pama_advantages` this keeps such a reward from silencing the others.

    Returns:
        Same shape, contiguous, at least float32. A group with one valid reward gives 0. With
        `return_informative`, `GroupAdvantages(advantages, informative)`.

    Raises:
        TypeError, ValueError: naming the argument, what came and what is wanted.
        RuntimeError: on `backward()` through the result, which is not differentiable.

    Complexity: O(N B). Source: Shao et al., arXiv 2402.03300, §4.1.2.

    >>> group_normalize(torch.tensor([[1.0, 3.0, 5.0, 5.0]]), 2)
    tensor([[-0.7071,  0.7071,  0.0000,  0.0000]])
    >>> group_normalize(torch.tensor([1.0, 3.0, 5.0, 5.0]), 2, return_informative=True).informative
    tensor([ True,  True, False, False])
    """
    group_size = check.integer("group_size", group_size)
    eps = check.number("eps", eps)
    if not eps >= 0:
        raise ValueError(f"eps must not be negative, got {eps}")
    told = check.flag("return_informative", return_informative)
    out: Tensor = call(ops.group_normalize, rewards, group_size, eps)
    out = constant("group_normalize", out, rewards)
    if not told:
        return out
    return GroupAdvantages(out, ops.group_informative(rewards, group_size))


def pama_advantages(
    advantages: Tensor,
    mask: Tensor | None = None,
    log_ratio: Tensor | None = None,
    *,
    clip: check.Clip = 0.2,
    reduction: str = "token",
    preference: Tensor | Sequence[float] | None = None,
    noon: bool = True,
    ratio_weighted: bool = False,
    group: ProcessGroup | None = None,
    cu_seqlens: Tensor | None = None,
    check_values: bool = False,
) -> PAMAStep:
    """Pareto-combine the advantages of N objectives into one, at a cost of O(N B T).

    With Noon A⁺ = max(A, 0), the ratio u = exp(log_ratio), and the active part I(A)_t = A⁺_t where
    u_t <= 1 + ε_high, else 0 (without Noon also 0 where A < 0 and u < 1 − ε_low), the weights c on
    the simplex solve one of these, by `reduction`:

    - "token": Theorem 1 on the N scalars I(A)_i,t of every token;
    - "sequence": Theorem 1 on each sequence's means of I(A)_i;
    - "gram": min cᵀ G c, G_ij = Σ_t m_t I(A)_i,t I(A)_j,t: the paper's bound itself (`min_norm`);
    - "batch": Theorem 1 on the batch's means of I(A)_i.

    The result is Ā_t = Σ_i c_i A⁺_i,t, which any PPO or GRPO loss takes in place of its own
    advantage: with Noon the n clipped losses collapse into that one loss exactly. With
    `noon=False`, Ā = Σ c_i A_i is a definition, not an identity. An objective whose I(A) is 0 over
    the whole batch is already stationary: it gets weight 0 and is reported in `active`.

    Where an objective says nothing about a sequence (its reward does not apply, or its group is
    flat), the 0 of its advantage is no value to choose weights by: Theorem 1 on (x, 0) gives it all
    the weight, and the sequence teaches nothing. A `preference` [N, B] that is 0 there takes it out
    of that sequence's problem:

        normalized = group_normalize(rewards, group_size, return_informative=True)
        preference = normalized.informative.float()

    Each sequence b then has a problem of its own, over the objectives with p_ib > 0: for "token"
    and "sequence" as above; for "gram" and "batch" the batch's one problem (G or the means), solved
    by the preference of b, so that sequences of one preference share one c. There I(A)_i counts in
    the sequences with p_ib > 0 only, of Z_i tokens, and an objective weighs the same however rarely
    it applies: means are over its own Z_i tokens, and G is that of √(max_j Z_j / Z_i) I(A)_i. With
    nothing dropped, that is the G and the means from above. A sequence without objectives gets
    Ā = 0 and weights 0.

    Ā and c are constants of the optimisation: no gradient flows through them.

    Args:
        advantages: [N, B, T], whitened per objective (see `whiten`), any strides.
        mask: [B, T], bool, integer or float 0/1; None is all ones.
        log_ratio: [B, T], log π − log π_old; None is 0, as before the first update.
        clip: ε, or the pair (ε_low, ε_high).
        reduction: one of "token", "sequence", "gram", "batch".
        preference: N nonnegative numbers, uniform if None; 0 drops an objective. Or a tensor
            [N, B], one for each sequence, such as where each is informative times what it is worth.
        noon: drop negative advantages, as the paper does.
        ratio_weighted: multiply I(A)_t by u_t when choosing weights.
        group: process group whose ranks hold disjoint sequences of one batch; only the statistics
            (at most N + N² numbers, N more with a preference [N, B], of which each rank holds its
            own sequences') travel, after a header as in `whiten`. All ranks get the same bits of
            them.
        cu_seqlens: ragged [N, total], see `gae`.
        check_values: see `gae`; also checks a `preference` tensor on a GPU.

    Returns:
        `PAMAStep(advantages, weights, gram, optimum, active)`; 0 at masked positions, and
        where no objective is both active and preferred.

    Raises:
        TypeError, ValueError: naming the argument, what came and what is wanted.
        RuntimeError: on `backward()` through the result, which is not differentiable.

    Complexity: O(N B T) and, for "gram", O(N² B T); on a GPU at most 4 launches. With a preference
    [N, B], for "gram" and "batch" also the problem once for each distinct one (on a GPU for each
    sequence, and some launches of a few numbers more).
    Source: He & Maghsudi, arXiv 2508.07768, Theorem 1 and §4.

    >>> advantages = torch.tensor([[[2.0, -1.0]], [[1.0, 3.0]]])
    >>> pama_advantages(advantages).advantages
    tensor([[1., 0.]])
    """
    agreement.check_group(group)
    with agreement.all_ranks_raise(advantages, group, wait=check_values) as ranks:
        check_values = check.flag("check_values", check_values)
        epsilon_low, epsilon_high = check.clip(clip)
        kind = check.choice("reduction", reduction, REDUCTIONS)
        p: Tensor | None = None
        if preference is not None:
            x = check.tokens("advantages", advantages, mask, cu_seqlens, objectives=True)
            p = check.preference(preference, x.shape[0], x, check.rows_of(x, cu_seqlens))
        noon = check.flag("noon", noon)
        ratio_weighted = check.flag("ratio_weighted", ratio_weighted)
        tokens = advantages, mask, log_ratio, p, cu_seqlens
        rule = kind, epsilon_low, epsilon_high, noon, ratio_weighted
        statistics = call(ops.pama_statistics, *tokens, *rule, check_values=check_values)
        n = advantages.shape[0]
        if group is not None:
            ranks.must_agree(
                [advantages],
                lambda _: {
                    "the function": "pama_advantages",
                    "the number of objectives": n,
                    "reduction": reduction,
                    "clip": (epsilon_low, epsilon_high),
                    "noon": noon,
                    "ratio_weighted": ratio_weighted,
                    "preference": (
                        p if p is None else p.tolist() if p.dim() == 1 else "one for each sequence"
                    ),
                },
            )
    if group is not None:
        statistics = agreement.gathered(statistics, group).sum(0)
    if by_sequence(p) and reduction in ("gram", "batch"):
        statistics = of_own_tokens(statistics, n, kind)
    combined, weights, optimum, active = ops.pama_combine(*tokens, statistics, *rule)
    by_gram = reduction == "gram"
    step = PAMAStep(
        combined,
        weights,
        statistics[n:].view(n, n) if by_gram else None,
        None if by_gram else optimum,
        active,
    )
    return constant("pama_advantages", step, advantages, log_ratio, p, mask)
