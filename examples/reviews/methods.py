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


def find_method(name: str, objectives: int) -> Method:
    """The method of this name; ``morlhf-W`` gives W to the first objective, 1 - W to the others."""
    if name == "mgda-ub":
        return mgda_ub
    if name == "token-signed":
        return partial(pama, reduction="token", noon=False)
    if name in ("token", "sequence", "gram", "batch"):
        return partial(pama, reduction=name)
    kind, _, weight = name.partition("-")
    if kind == "morlhf":
        first = float(weight) if weight else 1 / objectives
        if 0 <= first <= 1:
            rest = (1 - first) / (objectives - 1)
            return partial(fixed_weights, weights=(first, *[rest] * (objectives - 1)))
    raise ValueError(f"unknown method {name!r}; there are {', '.join(ALL)}")


def label(name: str, objectives: int = 2) -> str:
    """The name as tables and figures print it."""
    kind, _, weight = name.partition("-")
    if kind == "morlhf":
        return f"fixed {weight}" if weight else f"fixed 1/{objectives}"
    if name == "token-signed":
        return "PAMA token, signed"
    return "MGDA-UB" if name == "mgda-ub" else f"PAMA {name}"
