"""A plug-in of pytest for a GPU: a process in which CUDA no longer works ends, and what each test
came to is kept as it comes.

After an illegal access every further call in a process fails. pytest-xdist starts a new worker in
place of one that ended and reports the test that ended it; scripts/gpu_check.sh loads this only
there. GPU_CHECK_LINES names the file of outcomes: of a run that is out of time, pytest may write no
report.
"""

import os
import sys

import pytest
import torch


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """In the process that collects the reports."""
    path = os.environ.get("GPU_CHECK_LINES")
    if not path or "PYTEST_XDIST_WORKER" in os.environ:
        return
    if report.when == "call" or not report.passed:
        with open(path, "a") as file:
            file.write(f"{report.outcome} {report.duration:.1f} {report.nodeid}\n")


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
