"""Every op of one group once, on the GPU, against its float64 definition.

    python scripts/gpu_ops.py GROUP [--dry]

The calls are those of tests/op_calls.py. A group is what one CUDA source holds, and runs in a
process of its own: after an illegal access nothing else works in that process. With --dry on the
CPU.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Prefixes of the ops' names; what none of them takes is a weighting.
GROUPS = {
    "gram": ("gram",),
    "combine": ("combine",),
    "weights": (),
    "gae": ("gae",),
    "whiten": ("whiten",),
    "group": ("group",),
    "pama": ("pama_statistics", "pama_combine"),
    "kl": ("kl",),
    "ppo": ("ppo",),
    "value": ("value",),
}


def group_of(name: str) -> str:
    """The group whose process calls an op."""
    return next((group for group, own in GROUPS.items() if own and name.startswith(own)), "weights")


def main(group: str, *options: str) -> int:
    """Call the group's ops; 1 if one raises or is off."""
    sys.path[1:1] = [str(ROOT / "tests")]
    import torch
    from op_calls import WITHOUT_KERNELS, calls
    from torch.utils._pytree import tree_map_only

    from pama_ops import _library, _self_check

    device = torch.device("cpu" if "--dry" in options else "cuda")
    failed = 0
    if device.type == "cuda" and not _library.has_cuda:
        print(f"BAD: {_library.why_no_cuda}")
        failed = 1
    for name, arguments in calls():
        if name in WITHOUT_KERNELS or group_of(name) != group:
            continue
        here = tree_map_only(torch.Tensor, lambda x: x.to(device, copy=True), arguments)
        sizes = [tuple(x.shape) for x in arguments if isinstance(x, torch.Tensor)]
        try:
            with _self_check.Comparison() as comparison:
                getattr(torch.ops.pama_ops, name).default(*here)
            worst = comparison.errors[name]
        except (RuntimeError, ValueError) as error:  # all ops after it have their say too
            print(f"{name:<24}RAISED {str(error).splitlines()[0]}  {sizes}", flush=True)
            failed = 1
            continue
        within = worst <= 1
        failed |= not within
        print(
            f"{name:<24}{worst:<12.3g}{'' if within else 'BEYOND ITS BOUND'}  {sizes}", flush=True
        )
    return failed


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
