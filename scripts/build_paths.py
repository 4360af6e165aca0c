"""Prints what CMakeLists.txt needs to know of this interpreter, as a CMake list."""

import sysconfig
from pathlib import Path

try:
    import pybind11
    import torch
    from torch.utils.cpp_extension import include_paths
except ImportError as error:
    raise SystemExit(
        f"{error}: pip install torch pybind11 there, or let pip isolate the build"
    ) from None

if tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 11):
    raise SystemExit(f"torch must be at least 2.11, found {torch.__version__}")
python = Path(sysconfig.get_path("include"))
if not (python / "Python.h").exists():
    raise SystemExit(f"{python / 'Python.h'} is missing: install python3-dev")
paths = [
    torch.__version__,
    str(Path(torch.__file__).parent / "lib"),
    pybind11.get_include(),
    str(python),
    sysconfig.get_config_var("EXT_SUFFIX"),
    *(path for path in include_paths() if "torch" in path),
]
print(";".join(paths))
