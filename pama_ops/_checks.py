"""Checks of arguments, each said once.

They raise TypeError or ValueError naming the argument, what came and what is wanted. Those whose
names end in `values` or `value`, and `gram_matrix`, read a tensor's values, which waits for a GPU.
"""

from __future__ import annotations

import math
import numbers
import operator
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import SupportsIndex, cast

import torch
from torch import Tensor

from pama_ops import _memory as memory

Clip = float | Sequence[float]

FLOATING = {torch.float64, torch.float32, torch.float16, torch.bfloat16}
# What kernels read as 0 or 1, or as a number.
READABLE = FLOATING | {
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64,
}  # fmt: skip
UNREAD = "complex, quantized, float8 or uint16 to uint64"


def tensor(name: str, x: object) -> Tensor:
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(x).__name__}")
    if not dense(x):
        kind = "a nested tensor" if x.is_nested else str(x.layout)
        raise TypeError(f"{name} must be a dense tensor, got {kind}")
    return x


def dense(x: Tensor) -> bool:
    return x.layout is torch.strided and not x.is_nested


def floating(name: str, x: object) -> Tensor:
    x = tensor(name, x)
    if x.dtype not in FLOATING:
        if not x.dtype.is_floating_point:
            raise TypeError(f"{name} must have a floating-point dtype, got {x.dtype}")
        raise TypeError(f"{name} must be float64, float32, float16 or bfloat16, got {x.dtype}")
    return x


def match(name: str, x: object, shape: Sequence[int], like: str, device: torch.device) -> Tensor:
    """`x` is a floating-point tensor of this shape and device, which are those of `like`."""
    x = floating(name, x)
    if x.shape != shape:
        raise ValueError(
            f"{name} must have the shape {list(shape)} that goes with {like}, got {list(x.shape)}"
        )
    if x.device != device:
        raise ValueError(f"{name} must be on {device} like {like}, got {x.device}")
    return x


def tokens(name: str, x: object, mask: object, cu_seqlens: object, *, objectives: bool) -> Tensor:
    """A token array, [N, B, T] or [B, T] (ragged: without B), beside its mask and offsets."""
    x = floating(name, x)
    dims = (3 if objectives else 2) - (cu_seqlens is not None)
    if x.dim() != dims:
        layout = (["N"] if objectives else []) + (["B", "T"] if cu_seqlens is None else ["total"])
        raise ValueError(
            f"{name} must have the {dims} dimensions [{', '.join(layout)}]"
            f"{' when cu_seqlens is given' if cu_seqlens is not None else ''}, got {list(x.shape)}"
        )
    if objectives and x.shape[0] == 0:
        raise ValueError(f"{name} must have at least one objective, got {list(x.shape)}")
    if mask is not None:
        token_mask(mask, x.shape[1:] if objectives else x.shape, name, x.device)
    if cu_seqlens is None:
        return x
    cu = tensor("cu_seqlens", cu_seqlens)
    if cu.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"cu_seqlens must be int32 or int64, got {cu.dtype}")
    if cu.dim() != 1 or cu.shape[0] == 0:
        raise ValueError(
            f"cu_seqlens must be 1-dimensional with B + 1 entries, got {list(cu.shape)}"
        )
    if cu.device != x.device:
        raise ValueError(f"cu_seqlens must be on {x.device} like {name}, got {cu.device}")
    return x


def rows_of(x: Tensor, cu_seqlens: Tensor | None) -> int:
    """B of a token array."""
    return x.shape[-2] if cu_seqlens is None else cu_seqlens.shape[0] - 1


def token_mask(x: object, shape: Sequence[int], like: str, device: torch.device) -> None:
    mask = tensor("mask", x)
    if mask.dtype not in READABLE:
        raise TypeError(f"mask must be bool, integer or float (not {UNREAD}), got {mask.dtype}")
    if mask.shape != shape:
        raise ValueError(
            f"mask must have the shape {list(shape)} that goes with {like}, got {list(mask.shape)}"
        )
    if mask.device != device:
        raise ValueError(f"mask must be on {device} like {like}, got {mask.device}")


def require(good: Tensor, message: str, got: Callable[[], object] | None = None) -> None:
    """Raise ValueError unless all of `good` holds; synchronises. `got` says what came, but for a
    program that is compiled, which runs without this code.
    """
    if torch.compiler.is_compiling():
        torch.ops.pama_ops.require(good, message)  # of _ops.py, which imports this module
    elif not bool(good.all()):
        raise ValueError(message if got is None else f"{message}, got {got()}")


def token_values(mask: Tensor | None, cu_seqlens: Tensor | None, total: int) -> None:
    """The checks of tensors' values that a CPU kernel makes by itself; synchronises on a GPU."""
    if mask is not None and mask.dtype != torch.bool:
        good = (mask == 0) | (mask == 1)

        def found() -> str:
            row = (~good).reshape(-1, good.shape[-1]).any(-1).nonzero()[0]
            return f"other values in row {int(row)}"

        require(good.all(), "mask must hold only 0 and 1", found)
    if cu_seqlens is not None:
        rises = (cu_seqlens.diff() >= 0).all()
        ends = (cu_seqlens[:1] == 0).all() & (cu_seqlens[-1:] == total).all()
        good = rises & ends & (cu_seqlens.numel() > 0)
        # The number is not known while a program is compiled for any.
        tokens = "number of" if torch.compiler.is_compiling() else total
        require(good, f"cu_seqlens must rise from 0 to the {tokens} tokens", cu_seqlens.tolist)


def plain(x: object) -> object:
    """A scalar of numpy and its kin, or an array without dimensions, as Python's own. Not a tensor,
    which may lie on a GPU.
    """
    if not isinstance(x, Tensor) and getattr(x, "shape", None) == () and hasattr(x, "item"):
        return x.item()
    return x


def flag(name: str, x: object) -> bool:
    if x is True or x is False:
        return x
    value = plain(x)
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {x!r}")
    return value


def number(name: str, x: object) -> float:
    """A float, or an int in its range, of any real number, such as one of numpy."""
    if type(x) is float or (type(x) is int and -(2**63) < x < 2**63):
        return x
    value = plain(x)
    if isinstance(value, bool) or not isinstance(value, (numbers.Real, Decimal)):
        raise TypeError(f"{name} must be a number, got {type(x).__name__}")
    try:
        return float(value)
    except (OverflowError, ValueError):  # of a decimal's signalling NaN
        raise ValueError(f"{name} must be a float64, got {_brief(value)}") from None


def _brief(value: object) -> str:
    """A number in as many digits as one reads; Python refuses to write integers of thousands."""
    try:
        text = str(value)
    except ValueError:
        return f"{type(value).__name__} of thousands of digits"
    return text if len(text) <= 40 else f"{text[:20]}... ({len(text)} digits)"


def integer(name: str, x: object) -> int:
    if type(x) is int:
        return x
    value = plain(x)
    if isinstance(value, bool) or hasattr(value, "shape") or not hasattr(value, "__index__"):
        raise TypeError(f"{name} must be an integer, got {type(x).__name__}")
    return operator.index(cast("SupportsIndex", value))


def sequence(x: object) -> list[object] | None:
    """The entries of a list, a tuple, an array or a list of a configuration, which need not be a
    Sequence; None of anything else.
    """
    if isinstance(x, (list, tuple)):
        return list(x)
    if isinstance(x, (str, bytes, bytearray, Mapping, Tensor)) or getattr(x, "shape", None) == ():
        return None
    if not (hasattr(type(x), "__len__") and hasattr(type(x), "__getitem__")):
        return None
    entries = cast("Sequence[object]", x)
    return [entries[i] for i in range(len(entries))]


def finite(name: str, x: object) -> float:
    value = number(name, x)
    if not -math.inf < value < math.inf:
        raise ValueError(f"{name} must be finite, got {value}")
    return value


def positive(name: str, x: object) -> float:
    value = number(name, x)
    if not 0 < value < math.inf:
        raise ValueError(f"{name} must be positive and finite, got {value}")
    return value


def nonnegative(name: str, x: object) -> float:
    value = number(name, x)
    if not 0 <= value < math.inf:
        raise ValueError(f"{name} must be nonnegative and finite, got {value}")
    return value


def unit(name: str, x: object) -> float:
    value = number(name, x)
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must lie in [0, 1], got {value}")
    return value


def clip(x: object) -> tuple[float, float]:
    """`clip` as (low, high): the ratio is held within [1 - low, 1 + high]."""
    if type(x) is not float and (pair := sequence(x)) is not None:
        if len(pair) != 2:
            raise ValueError(f"clip must be a number or a pair (low, high), got {x!r}")
        return positive("clip[0]", pair[0]), positive("clip[1]", pair[1])
    both = positive("clip", x)
    return both, both


def choice(name: str, x: object, options: Sequence[str]) -> int:
    if not isinstance(x, str) or x not in options:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, options))}, got {x!r}")
    return options.index(x)


def gram(name: str, x: object) -> Tensor:
    x = floating(name, x)
    shape = x.shape
    if len(shape) < 2 or shape[-1] != shape[-2] or shape[-1] == 0:
        raise ValueError(f"{name} must have the shape [..., n, n] with n >= 1, got {list(shape)}")
    return x


def objective_values(name: str, x: object) -> Tensor:
    """Values of n objectives, as Theorem 1 takes them."""
    x = floating(name, x)
    if x.dim() == 0 or x.shape[-1] == 0:
        raise ValueError(f"{name} must have the shape [..., n] with n >= 1, got {list(x.shape)}")
    return x


def gram_matrix(gram: Tensor) -> None:
    """The checks of a Gram matrix that a CPU kernel makes by itself; synchronises on a GPU.

    Entries that are not finite are data. csrc/core/matrix_stack.h says what rounding is allowed.
    """
    g = gram.detach().double()
    square = g.diagonal(dim1=-2, dim2=-1)
    norm = square.abs().sqrt()
    size = torch.maximum(norm[..., None] * norm[..., None, :], torch.maximum(g.abs(), g.mT.abs()))
    info = torch.finfo(gram.dtype)
    apart = (g - g.mT).abs() > 64 * info.eps * size
    require(
        ~apart,
        "gram must be symmetric to rounding",
        lambda: _first_entry(g, apart, "{lower:g} at [{i}, {j}] and {upper:g} at [{j}, {i}]"),
    )
    least = info.smallest_normal * info.eps
    largest = square.abs().masked_fill(square.isnan(), 0).amax(-1, keepdim=True)
    slack = 2.0**-20 * largest + least
    longest = (square.clamp(min=0) + slack).sqrt()
    beyond = g.abs() > (1 + 2.0**-6) * longest[..., None] * longest[..., None, :]
    bad = (beyond & g.isfinite()) | torch.diag_embed(square < -slack)
    require(
        ~bad,
        "gram must be inner products, none beyond the root of its two squares",
        lambda: _first_entry(
            g, bad, "{lower:g} at [{i}, {j}]", " of squares {first:g} and {other:g}"
        ),
    )


def _first_entry(gram: Tensor, bad: Tensor, entry: str, off_diagonal: str = "") -> str:
    """The first bad one on or below the diagonal, in these words."""
    n = gram.shape[-1]
    b, i, j = bad.tril().reshape(-1, n, n).nonzero()[0].tolist()
    g = gram.reshape(-1, n, n)[b].tolist()
    words = entry + (off_diagonal if i != j else "") + (f" of matrix {b}" if gram.dim() > 2 else "")
    return words.format(i=i, j=j, lower=g[i][j], upper=g[j][i], first=g[i][i], other=g[j][j])


def preference(
    x: Tensor | Sequence[float] | None, n: int, like: Tensor, sequences: int | None = None
) -> Tensor | None:
    """A preference over n objectives as a tensor on `like`'s device.

    Where the number of `sequences` is given, a tensor [n, sequences] may hold one for each of them.
    """
    if x is None:
        return None
    if isinstance(x, Tensor):
        x = floating("preference", x)
        if sequences is not None and x.shape != (n,):
            if x.shape != (n, sequences):
                raise ValueError(
                    f"preference must have the shape {[n]} that goes with the objectives, or "
                    f"{[n, sequences]} with one for each sequence, got {list(x.shape)}"
                )
            return match("preference", x, x.shape, "the objectives", like.device)
        return match("preference", x, (n,), "the objectives", like.device)
    rows = None if sequences is None else sequence(x)
    if rows and all(sequence(v) is not None for v in rows):
        raise TypeError(
            f"preference must be a tensor {[n, sequences]} to hold one for each sequence, "
            f"got {type(x).__name__} of {type(rows[0]).__name__}"
        )
    values = preference_numbers("preference", x, n)
    if like.device.type == "cpu":
        return torch.tensor(values, dtype=torch.float64, device=like.device)
    p = like.new_empty(n, dtype=torch.float64)
    for i, v in enumerate(values):  # a copy from the host would wait for the GPU
        p[i].fill_(v)
    return p


def preference_numbers(name: str, x: object, n: int) -> list[float]:
    """A preference that is no tensor as a list of n numbers."""
    entries = sequence(x)
    if entries is None:
        raise TypeError(f"{name} must be a tensor or a sequence, got {type(x).__name__}")
    values = [number(f"{name}[{i}]", v) for i, v in enumerate(entries)]
    if len(values) != n:
        raise ValueError(f"{name} must have the {n} entries of the objectives, got {values}")
    if not all(0 <= v < math.inf for v in values) or not any(values):
        raise ValueError(f"{name} must be nonnegative and finite with a positive sum, got {values}")
    return values


def seed(x: object, gram: Tensor) -> Tensor:
    x = tensor("seed", x)
    if x.dtype != torch.int64:
        raise TypeError(f"seed must be an int64 tensor, got {x.dtype}")
    if x.dim() != 0 and x.shape != gram.shape[:-2]:
        raise ValueError(
            f"seed must have the shape [] or {list(gram.shape[:-2])}, got {list(x.shape)}"
        )
    if x.device != gram.device:
        raise ValueError(f"seed must be on {gram.device} like gram, got {x.device}")
    return x


def preference_values(p: Tensor | None, *, by_sequence: bool = False) -> None:
    """The check of a preference tensor that a CPU kernel makes by itself; synchronises.

    `by_sequence`: p is [N, B], and may leave a sequence none. Else [..., n].
    """
    if p is None:
        return
    if by_sequence:
        good = ((p >= 0) & (p < math.inf)).all()
        require(good, "preference must be nonnegative and finite", lambda: "values that are not")
        return
    total = p.double().sum(-1)
    good = (p >= 0).all() & ((total > 0) & (total < math.inf)).all()
    got = p.tolist if p.dim() == 1 else lambda: "values that are not"
    require(good, "preference must be nonnegative and finite with a positive sum", got)


def normalizer(x: Tensor | float | None) -> tuple[Tensor | None, float]:
    """`normalizer` as the pair an op takes: a tensor or None, and a divisor or 0."""
    if x is None or isinstance(x, Tensor):
        return x, 0.0
    return None, float(positive("normalizer", x))


def one_number(name: str, x: object, device: torch.device) -> Tensor:
    x = tensor(name, x)
    if x.dtype not in READABLE or x.numel() != 1:
        raise ValueError(f"{name} must hold one real number, got {x.dtype} {list(x.shape)}")
    if x.device != device:
        raise ValueError(f"{name} must be on {device} like the other arguments, got {x.device}")
    return x


def normalizer_value(x: Tensor | None) -> None:
    """The check of a normalizer tensor that a CPU kernel makes by itself; synchronises."""
    if x is not None:
        require(~(x < 0), "normalizer must not be negative", x.item)


def no_gradient(name: str, x: Tensor) -> None:
    """`x`, to be written, requires no gradient: it would get that of what it was before. Not asked
    of `.grad`, to which torch's own backward adds likewise.
    """
    if x.requires_grad and torch.is_grad_enabled():
        raise ValueError(
            f"{name} must require no gradient, as none flows through what is written to it: "
            "detach() it, or call under torch.no_grad()"
        )


def inference_writable(name: str) -> None:
    """An inference tensor may be written here."""
    if not torch.is_inference_mode_enabled():
        raise ValueError(
            f"{name} must be no inference tensor, which can only be written under "
            "torch.inference_mode(): clone() it"
        )


def without_signs_to_turn(name: str, x: Tensor) -> None:
    if x.is_neg():
        raise ValueError(f"{name} must be no view with signs to turn: resolve_neg() it")


def writable(name: str, x: Tensor) -> None:
    """`x` may be written in place; a compiler can only ask whether it overlaps itself."""
    if not torch.compiler.is_compiling():
        if x.is_inference():
            inference_writable(name)
        without_signs_to_turn(name, x)
    if x.layout == torch.strided:
        memory.refuse_overlap(name, x)
