// What lets one header compile for the host (g++, nvcc's host pass) and the device.
#pragma once

#if defined(__CUDACC__)
#define PAMA_HD __host__ __device__
#define PAMA_INLINE __host__ __device__ __forceinline__
#define PAMA_INLINED
#define PAMA_FLATTENED PAMA_INLINE
#else
#define PAMA_HD
// Forced, so that a caller compiled for several processors takes its callees along.
#define PAMA_INLINE __attribute__((always_inline)) inline
// The same of a lambda, after its parameters.
#define PAMA_INLINED __attribute__((always_inline))
// Of a function: forced, and with all that it calls, as a lambda that it is given.
#define PAMA_FLATTENED __attribute__((flatten)) PAMA_INLINE
#endif
