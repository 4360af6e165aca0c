"""The methods by the names that the command line, the tables and the files use."""

from __future__ import annotations

from functools import partial

from .ppo import Method, fixed_weights, mgda_ub, pama

MAIN = ("morlhf", "mgda-ub", "token", "sequence")
QUICK = ("morlhf", "mgda-ub", "token")
SWEEP = ("morlhf-0.1", "morlhf-0.3", "morlhf-0.7", "morlhf-0.9")
REST = ("token-signed", "gram", "batch", *SWEEP)
FRONT = (*SWEEP, "morlhf")
ALL = (*MAIN, *REST)
REDUCTIONS = ("token", "sequence", "gram", "batch")


def find_method(name: str, objectives: int) -> Method:
    """The method of this name.

    ``morlhf-W`` and ``token-W`` give the weight, or the preference, W to the first objective and
    share 1 - W among the others.
    """
    if name == "mgda-ub":
        return mgda_ub
    if name == "token-signed":
        return partial(pama, reduction="token", noon=False)
    kind, separator, weight = name.partition("-")
    shares = None
    if separator:
        first = _share(name, weight)
        shares = (first, *[(1 - first) / (objectives - 1)] * (objectives - 1))
    if kind == "morlhf":
        return partial(fixed_weights, weights=shares or (1 / objectives,) * objectives)
    if kind in REDUCTIONS:
        return partial(pama, reduction=kind, preference=shares)
    raise ValueError(f"unknown method {name!r}; there are {', '.join(ALL)}")


def _share(name: str, weight: str) -> float:
    try:
        share = float(weight)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise ValueError(f"unknown method {name!r}: {weight!r} is not a number from 0 to 1")
    return share


def label(name: str, objectives: int = 2) -> str:
    """The name as tables and figures print it."""
    kind, _, weight = name.partition("-")
    if kind == "morlhf":
        return f"fixed {weight}" if weight else f"fixed 1/{objectives}"
    if name == "token-signed":
        return "PAMA token, signed"
    return "MGDA-UB" if name == "mgda-ub" else f"PAMA {name.replace('-', ' ')}"
