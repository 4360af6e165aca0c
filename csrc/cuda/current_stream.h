// torch's current CUDA stream, from a library that also loads under a CPU build of torch.
#pragma once

#include <dlfcn.h>

#include <cstdint>

// Weak, because a CPU build of torch has no such symbol. A library that was linked against one does
// not name libtorch_cuda.so either, so that whether the loader binds the symbol under a CUDA torch
// depends on what libtorch.so brings along; where it did not, the function is looked up.
extern "C" __attribute__((weak)) int32_t aoti_torch_get_current_cuda_stream(int32_t, void**);

namespace pama {

using CurrentStream = int32_t (*)(int32_t device, void** stream);

// Null under a torch without CUDA.
inline CurrentStream current_stream_function() {
  static const CurrentStream function = []() -> CurrentStream {
    if (aoti_torch_get_current_cuda_stream) return aoti_torch_get_current_cuda_stream;
    // The one that torch has loaded, if it has; it stays loaded, so the handle is kept.
    void* library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
    if (!library) return nullptr;
    return reinterpret_cast<CurrentStream>(dlsym(library, "aoti_torch_get_current_cuda_stream"));
  }();
  return function;
}

}  // namespace pama
