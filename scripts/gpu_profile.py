"""What Nsight Compute looks at, each once: gram, the token chain, min_norm.

With --dry on the CPU. KERNELS are their kernels, by name: torch's own, which draw the inputs, are
left alone.
"""

import sys

KERNELS = "(gram|gae|pama|whiten)_[a-z0-9_]*kernel"


def main() -> None:
    """Run them."""
    import torch

    import pama_ops as po

    dry = "--dry" in sys.argv
    device = torch.device("cpu" if dry else "cuda")
    d, (n, b, t) = (10_000, (2, 3, 16)) if dry else (100_000_000, (4, 256, 1024))

    def rows(count: int, dtype: torch.dtype) -> list[torch.Tensor]:
        return [torch.randn(d, device=device, dtype=dtype) for _ in range(count)]

    for count, dtype in (2, torch.bfloat16), (8, torch.float32), (32, torch.float32):
        po.gram(rows(count, dtype))
    advantages, values = torch.randn(2, n, b, t, device=device)
    mask = torch.rand(b, t, device=device) < 0.9
    log_ratio = 0.1 * torch.randn(b, t, device=device)
    po.gae(advantages, values, mask)
    po.whiten(advantages, mask)
    for reduction in po.advantages.REDUCTIONS:
        po.pama_advantages(advantages, mask, log_ratio, reduction=reduction)
    for count in 8, 32:
        j = torch.randn(count, 64, device=device, dtype=torch.float64) + 0.1
        po.min_norm(j @ j.mT)
    if not dry:
        torch.cuda.synchronize()


if __name__ == "__main__":
    print(KERNELS) if "--kernels" in sys.argv else main()
