"""Builds the extension by asking CMake, which holds the whole build (see CMakeLists.txt)."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent


class CMakeBuild(build_ext):
    """One extension, `pama_ops._C`; CMake puts `_C_cuda.so` beside it where nvcc is found."""

    def _in_wheel(self, ext: Extension) -> Path:
        return (ROOT / self.get_ext_fullpath(ext.name)).resolve()

    def build_extension(self, ext: Extension) -> None:
        """Configure and build with CMake, or say in one line why not."""
        # An editable install builds in place, so that a rebuild of one kernel takes seconds.
        built = ROOT / ext.name.replace(".", "/") if self.editable_mode else self._in_wheel(ext)
        output = built.parent
        # pip's cmake and ninja live beside the interpreter, which need not be on the PATH.
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        compiler = os.environ.get("CXX", "c++")
        if shutil.which(compiler, path=path) is None:
            message = f"pama_ops: no C++ compiler ({compiler}) was found, kernels are not built"
            if os.environ.get("PAMA_STRICT") == "1":
                raise SystemExit(message)
            print(f"{message}; ops will run in plain PyTorch", file=sys.stderr)
            return
        build = ROOT / "build" / "cmake"
        configure = [
            *("cmake", "-S", str(ROOT), "-B", str(build), "-G", "Ninja"),
            f"-DPython3_EXECUTABLE={sys.executable}",
            f"-DPAMA_OUTPUT={output}",
            f"-DPAMA_CUDA={os.environ.get('PAMA_CUDA', 'auto')}",
            f"-DPAMA_TESTING={os.environ.get('PAMA_TESTING', 'OFF')}",
        ]
        if "TORCH_CUDA_ARCH_LIST" in os.environ:
            configure.append(f"-DTORCH_CUDA_ARCH_LIST={os.environ['TORCH_CUDA_ARCH_LIST']}")
        jobs = os.environ.get("MAX_JOBS", str(os.cpu_count()))
        environment = {**os.environ, "PATH": path}
        for command in configure, ["cmake", "--build", str(build), "-j", jobs]:
            if subprocess.run(command, env=environment, check=False).returncode != 0:
                raise SystemExit(f"pama_ops: the build failed; see above ({' '.join(command[:3])})")


# Optional, since the package works without: setuptools must not look for a file that is elsewhere.
extension = Extension("pama_ops._C", sources=[], optional=True)
setup(ext_modules=[extension], cmdclass={"build_ext": CMakeBuild})
