"""No CUDA kernel uses local memory; what changed against the golden file is shown as a warning."""

from __future__ import annotations

import warnings

import kernel_resources
import pytest

from pama_ops import _library

needs_nvcc = pytest.mark.skipif(
    bool(_library.extension and _library.extension.cuda),
    reason="needs nvcc at build time: NO CUDA KERNEL WAS COMPILED, let alone checked for spills",
)

REPORT = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_Z4thinv' for 'sm_80'
ptxas info    : Function properties for _Z4thinv
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 22 registers, used 1 barriers, 64 bytes smem
ptxas info    : Compiling entry function '_Z3fatv' for 'sm_90a'
ptxas info    : Function properties for _Z3fatv
    32 bytes stack frame, 40 bytes spill stores, 44 bytes spill loads
ptxas info    : Used 255 registers, used 0 barriers, 32 bytes cumulative stack size
"""


def test_spills_are_read_from_the_assemblers_report():
    resources = kernel_resources.parse(REPORT)
    thin = {"registers": 22, "shared": 64, "stack": 0, "spills": 0}
    fat = {"registers": 255, "shared": 0, "stack": 32, "spills": 84}
    assert resources == {"sm_80": {"_Z4thinv": thin}, "sm_90a": {"_Z3fatv": fat}}
    assert kernel_resources.spilled(resources) == [
        "_Z3fatv for sm_90a: 32 bytes of stack, 84 bytes of spills"
    ]


def test_growth_is_named():
    before = kernel_resources.parse(REPORT)
    now = kernel_resources.parse(REPORT.replace("22 registers", "23 registers"))
    assert kernel_resources.changes(now, before) == ["_Z4thinv for sm_80: registers 22 -> 23"]


def test_kernels_of_one_template_keep_their_arguments():
    """One that took the name of another would take its spills out of sight."""
    mangled = [f"_ZN4pama10gae_kernelILNS_6LayoutE{k}EEEvNS_7GaeArgsE" for k in range(3)]
    if kernel_resources.readable(mangled) == mangled:
        pytest.skip("needs c++filt")
    assert kernel_resources.readable(mangled) == [f"gae_kernel<{k}>" for k in range(3)]


@needs_nvcc
def test_every_kernel_is_reported_for_every_architecture():
    resources = kernel_resources.built()
    kernels = [set(figures) for figures in resources.values()]
    assert all(mine == kernels[0] for mine in kernels)
    assert len(kernels[0]) > len(list((kernel_resources.ROOT / "csrc/cuda").glob("*.cu")))


@needs_nvcc
def test_no_kernel_uses_local_memory():
    assert not kernel_resources.spilled(kernel_resources.built())


@needs_nvcc
def test_a_block_has_room_beside_its_static_arrays():
    """csrc/cuda/launch.h asks for more than 48 KB where less than this is left of them."""
    for kernels in kernel_resources.built().values():
        assert max(figures["shared"] for figures in kernels.values()) <= 4096


@needs_nvcc
@pytest.mark.filterwarnings("default:nvcc:UserWarning")
def test_changes_against_the_golden_file_are_shown():
    """They warn and do not fail: `make golden` accepts them. An unknown nvcc is not compared."""
    standard = kernel_resources.golden().get(kernel_resources.nvcc_version())
    assert kernel_resources.golden()
    if standard is None:
        pytest.skip(f"needs golden figures of nvcc {kernel_resources.nvcc_version()}: make golden")
    changed = kernel_resources.changes(kernel_resources.built(), standard)
    if changed:
        heading = f"nvcc {kernel_resources.nvcc_version()}, {len(changed)} changes since golden:"
        warnings.warn("\n".join([heading, *changed]), stacklevel=1)
