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


class Lines:
    """Writes what tests came to, in the process that collects their reports."""

    def __init__(self, path: str) -> None:
        self.path = path

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """A line for each test."""
        if report.when == "call" or not report.passed:
            with open(self.path, "a") as file:
                file.write(f"{report.outcome} {report.duration:.1f} {report.nodeid}\n")


def pytest_configure(config: pytest.Config) -> None:
    """Of xdist's processes only the first has no input of its own."""
    path = os.environ.get("GPU_CHECK_LINES")
    if path and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Lines(path))


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
