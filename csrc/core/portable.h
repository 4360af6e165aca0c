// What lets one header compile for the host (g++, nvcc's host pass) and the device.
#pragma once

#if defined(__CUDACC__)
#define PAMA_HD __host__ __device__
#else
#define PAMA_HD
#endif
