"""Backends: every test of an op runs on the CPU kernels, on the CUDA kernels as compiled for the
host (csrc/testing), on the plain-PyTorch defaults, and on a GPU where there is one."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import hypothesis
import pytest
import torch
from gloo_ranks import four_ranks, ranks  # noqa: F401, fixtures of every test of process groups

import pama_ops
from pama_ops import _autograd, _dispatch, _ops

ROOT = Path(__file__).parent.parent
EMULATED = ROOT / "build" / os.environ.get("PAMA_EMULATED_LIBRARY", "_C_emulated.so")

# Inductor's usual cache is the user's, and takes code that was compiled for another version of the
# ops, or for another processor, as that of the same graph.
INDUCTOR = tempfile.TemporaryDirectory(prefix="pama_ops_inductor_")
os.environ["TORCHINDUCTOR_CACHE_DIR"] = INDUCTOR.name

# Examples that fail are kept by hypothesis; a fixed seed keeps a run of the suite repeatable.
hypothesis.settings.register_profile(
    "default", deadline=None, derandomize=True, max_examples=30,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)  # fmt: skip
hypothesis.settings.register_profile(
    "few", hypothesis.settings.get_profile("default"), max_examples=6
)
hypothesis.settings.load_profile("default")


class TorchGenerator:
    """torch's generator of the CPU, which hypothesis seeds before each example like Python's own.

    torch.manual_seed would seed CUDA's, too, and where there is none it notes where it was called
    from, each time.
    """

    def seed(self, seed: int) -> None:
        torch.default_generator.manual_seed(seed)

    def getstate(self) -> torch.Tensor:
        return torch.default_generator.get_state()

    def setstate(self, state: torch.Tensor) -> None:
        torch.default_generator.set_state(state)


TORCH_GENERATOR = TorchGenerator()  # hypothesis holds it weakly
hypothesis.register_random(TORCH_GENERATOR)


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("pama_ops")
    group.addoption(
        "--examples", type=int, metavar="N",
        help="N random examples of every property, in place of the fixed ones; --hypothesis-seed"
        " repeats them",
    )  # fmt: skip
    group.addoption(
        "--backends",
        help="the only ones that tests of an op run on: cpu,emulated,default,cuda",
    )


def pytest_configure(config: pytest.Config) -> None:
    examples = config.getoption("--examples")
    if examples:
        hypothesis.settings.register_profile(
            "random", hypothesis.settings.get_profile("default"), derandomize=False,
            max_examples=examples, print_blob=True,
        )  # fmt: skip
        hypothesis.settings.load_profile("random")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    backends = config.getoption("--backends")
    if backends:
        parameters = {x: getattr(getattr(x, "callspec", None), "params", {}) for x in items}
        out = [x for x in items if parameters[x].get("backend", "cpu") not in backends.split(",")]
        config.hook.pytest_deselected(items=out)
        items[:] = [x for x in items if x not in set(out)]
    examples = config.getoption("--examples")
    for item in items if examples else []:
        # Also where a test asks for a number of its own.
        own = getattr(item.obj, "_hypothesis_internal_use_settings", None)
        if own is not None:
            item.obj._hypothesis_internal_use_settings = hypothesis.settings(
                own, max_examples=examples
            )


@pytest.fixture(autouse=True)
def same_draws_in_any_order() -> None:
    """What a test draws from torch's global generator is not what other tests have left of it."""
    torch.manual_seed(0)


class Backend:
    """A device, and the ops that serve it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.device = torch.device("cuda" if name == "cuda" else "cpu")

    @property
    def checks_values(self) -> bool:
        """Whether the ops check the values of masks and offsets by themselves."""
        return self.name in ("cpu", "default")

    def ops(self) -> dict[str, object]:
        if self.name == "emulated":
            namespace = torch.ops.pama_ops_emulated
            return {
                name: getattr(namespace, name).default
                for name in _dispatch.SCHEMAS
                if torch._C._dispatch_has_kernel_for_dispatch_key(
                    f"pama_ops_emulated::{name}", "CPU"
                )
            }
        if self.name == "default":
            namespace = torch.ops.pama_ops_default
            return {name: getattr(namespace, name).default for name in _dispatch.SCHEMAS}
        return {}


@pytest.fixture(params=[33, 65, 128, 256])
def many_rows(request: pytest.FixtureRequest, backend: Backend) -> int:
    """n of a weighting: more than a warp's lanes, and from 65 on more than its shared memory."""
    most = {"emulated": 65, "default": 33}.get(backend.name, 256)
    if request.param > most:
        pytest.skip(f"slow: {backend.name} is tested up to n = {most}")
    return request.param


@pytest.fixture(scope="session")
def emulated_library() -> object:
    """The CUDA kernels compiled for the host, as ops in a namespace of their own."""
    if not EMULATED.exists():
        pytest.fail(f"{EMULATED} is missing: build with PAMA_TESTING=ON, as `make test` does")
    library = define("pama_ops_emulated")
    torch.ops.load_library(EMULATED)
    return library


@pytest.fixture(scope="session")
def default_library() -> object:
    """The plain-PyTorch defaults, with no kernel over them."""
    library = define("pama_ops_default")
    for name, default in _dispatch.DEFAULTS.items():
        library.impl(name, default, "CompositeExplicitAutograd")
    return library


def define(namespace: str) -> torch.library.Library:
    """The library's schemas, and their autograd, in another namespace."""
    library = torch.library.Library(namespace, "DEF")
    for name, schema in _dispatch.SCHEMAS.items():
        library.define(name + schema)
    _autograd.register(namespace)
    return library


BACKENDS = ["cpu", "emulated", "default", pytest.param("cuda", marks=pytest.mark.cuda)]


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Backend:
    backend = Backend(request.param)
    if backend.name == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    if backend.name in ("emulated", "default"):
        request.getfixturevalue(f"{backend.name}_library")
    if backend.name == "cpu":
        assert pama_ops._library.extension is not None, pama_ops._library.why_no_cpu
    for name, op in backend.ops().items():
        monkeypatch.setattr(_ops, name, op)
    return backend
