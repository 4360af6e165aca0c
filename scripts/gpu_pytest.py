"""A plug-in of pytest for a GPU: a process in which CUDA no longer works ends.

After an illegal access every further call in a process fails. pytest-xdist starts a new worker in
place of one that ended and reports the test that ended it; scripts/gpu_check.sh loads this only
there.
"""

import os
import sys

import pytest
import torch


@pytest.hookimpl(trylast=True)
def pytest_runtest_logfinish(nodeid: str) -> None:
    """After each test's reports were sent."""
    if "PYTEST_XDIST_WORKER" not in os.environ or not torch.cuda.is_initialized():
        return
    try:
        torch.cuda.synchronize()
    except RuntimeError as error:
        print(f"{nodeid}: CUDA no longer works here: {error}", file=sys.stderr, flush=True)
        os._exit(3)
