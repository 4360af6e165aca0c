// The Python module: loading it registers the CPU kernels; it tells how it was built.
#pragma push_macro("TORCH_TARGET_VERSION")
#undef TORCH_TARGET_VERSION
#include <pybind11/pybind11.h>
#pragma pop_macro("TORCH_TARGET_VERSION")

#include "build_info.h"  // made by CMakeLists.txt
#include "cpu/generations.h"

PYBIND11_MODULE(_C, m) {
  m.doc() = "Compiled CPU kernels of pama_ops.";
  m.attr("compiler") = __VERSION__;
  m.attr("torch_built_with") = PAMA_TORCH_VERSION;
  m.attr("cuda") = PAMA_CUDA_STATUS;  // empty: the CUDA kernels were built
  m.attr("cuda_architectures") = PAMA_CUDA_ARCHITECTURES;
  m.attr("cuda_left_out") = PAMA_CUDA_LEFT_OUT;  // architectures that could not be built, and why
  m.def("gram_level", &pama::gram_level);
  m.def("clone_level", &pama::clone_level);
}
