// Copies to shared memory that need no registers on the way and that a thread need not wait for.
#pragma once

#include "cuda/device.cuh"

namespace pama {

#if defined(PAMA_EMULATE)

inline void copy_async(void* to, const void* from) { memcpy(to, from, 16); }
inline void commit_copies() {}
template <int Pending>
void await_copies() {}

#else

// Sixteen bytes, both ends so aligned.
__device__ __forceinline__ void copy_async(void* to, const void* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(
                   static_cast<uint32_t>(__cvta_generic_to_shared(to))),
               "l"(from)
               : "memory");
}
__device__ __forceinline__ void commit_copies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
// Until at most `Pending` of this thread's committed groups are under way.
template <int Pending>
__device__ __forceinline__ void await_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(Pending) : "memory");
}

#endif

}  // namespace pama
