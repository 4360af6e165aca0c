# Finds an nvcc that works with the host compiler and enables CUDA. On failure CUDA_STATUS says, in
# one line, why there are no CUDA kernels; CMake's own check would stop the whole build.
find_program(NVCC nvcc HINTS ENV CUDACXX ENV CUDA_HOME ENV CUDA_PATH /usr/local/cuda
             PATH_SUFFIXES bin)
if(NOT NVCC)
  set(CUDA_STATUS "not built: no nvcc was found")
  return()
endif()
file(WRITE "${CMAKE_BINARY_DIR}/try_nvcc.cu"
  "#include <type_traits>\n__global__ void kernel() {}\n"
  "int main() { kernel<<<1, 1>>>(); return std::is_same_v<int, int> ? 0 : 1; }\n")
execute_process(
  COMMAND "${NVCC}" -std=c++20 -ccbin "${CMAKE_CXX_COMPILER}" -c try_nvcc.cu -o try_nvcc.o
  WORKING_DIRECTORY "${CMAKE_BINARY_DIR}"
  RESULT_VARIABLE NVCC_RESULT OUTPUT_VARIABLE NVCC_OUTPUT ERROR_VARIABLE NVCC_OUTPUT)
if(NOT NVCC_RESULT EQUAL 0)
  string(REGEX MATCH "[^\n]*error[^\n]*" NVCC_ERROR "${NVCC_OUTPUT}")
  string(REPLACE "\"" "'" NVCC_ERROR "${NVCC_ERROR}")
  set(CUDA_STATUS "not built: ${NVCC} cannot compile C++20 with ${CMAKE_CXX_COMPILER}: ${NVCC_ERROR}")
  return()
endif()

# "9.0a" -> 90a-real; "+PTX" adds the virtual architecture. What this nvcc does not know is left out.
execute_process(COMMAND "${NVCC}" --list-gpu-arch OUTPUT_VARIABLE KNOWN)
set(CMAKE_CUDA_ARCHITECTURES)
string(REPLACE " " ";" wanted "${TORCH_CUDA_ARCH_LIST}")
foreach(entry IN LISTS wanted)
  string(REGEX REPLACE "\\+PTX$" "" number "${entry}")
  string(REPLACE "." "" number "${number}")
  string(REGEX REPLACE "[a-z]$" "" base "${number}")
  if(NOT "${KNOWN}\n" MATCHES "compute_${base}\n")
    message(STATUS "pama_ops: ${NVCC} does not know architecture ${entry}; left out")
    continue()
  endif()
  list(APPEND CMAKE_CUDA_ARCHITECTURES "${number}-real")
  if(entry MATCHES "\\+PTX$")
    list(APPEND CMAKE_CUDA_ARCHITECTURES "${number}-virtual")
  endif()
endforeach()
if(NOT CMAKE_CUDA_ARCHITECTURES)
  set(CUDA_STATUS "not built: ${NVCC} knows none of TORCH_CUDA_ARCH_LIST=${TORCH_CUDA_ARCH_LIST}")
  return()
endif()
set(CMAKE_CUDA_COMPILER "${NVCC}")
set(CMAKE_CUDA_HOST_COMPILER "${CMAKE_CXX_COMPILER}")
set(CMAKE_CUDA_STANDARD 20)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
enable_language(CUDA)
set(CUDA_STATUS "")
