# parse_architectures(NVCC LIST BUILT CMAKE LEFT_OUT): takes TORCH_CUDA_ARCH_LIST apart, as torch's own
# extensions do (names, "8.0;9.0a", "8.0 9.0+PTX", "native").
#
# BUILT: the entries that this nvcc and the kernels know; CMAKE: the same in CMake's words
# ("90a-real"); LEFT_OUT: the others, each with the reason.
set(OLDEST_ARCHITECTURE 80)  # Ampere: the kernels copy asynchronously and use its matrix units
set(NAMED_ARCHITECTURES
  "Kepler+Tesla=3.7" "Kepler=3.5+PTX" "Maxwell+Tegra=5.3" "Maxwell=5.0 5.2+PTX"
  "Pascal=6.0 6.1+PTX" "Volta+Tegra=7.2" "Volta=7.0+PTX" "Turing=7.5+PTX"
  "Ampere+Tegra=8.7" "Ampere=8.0 8.6+PTX" "Ada=8.9+PTX" "Hopper=9.0+PTX"
  "Blackwell+Tegra=11.0" "Blackwell=10.0 10.3 12.0 12.1+PTX")

function(parse_architectures NVCC LIST BUILT CMAKE LEFT_OUT)
  set(built)
  set(cmake)
  set(left_out)
  string(REGEX REPLACE "[ \t\r\n]+" ";" words "${LIST}")
  set(entries)
  foreach(word IN LISTS words)
    foreach(named IN LISTS NAMED_ARCHITECTURES)
      string(REGEX MATCH "^(.*)=(.*)$" matched "${named}")
      if(word STREQUAL CMAKE_MATCH_1)
        string(REPLACE " " ";" word "${CMAKE_MATCH_2}")
        break()
      endif()
    endforeach()
    if(word STREQUAL "native")
      execute_process(COMMAND "${Python3_EXECUTABLE}" -c
        "import torch; gpus = range(torch.cuda.device_count())
found = sorted({torch.cuda.get_device_capability(i) for i in gpus})
print(*('%d.%d' % pair for pair in found), sep=';', end='+PTX' if found else '')"
        OUTPUT_VARIABLE word ERROR_QUIET OUTPUT_STRIP_TRAILING_WHITESPACE)
      if(NOT word)
        list(APPEND left_out "native (torch sees no GPU)")
      endif()
    endif()
    list(APPEND entries ${word})
  endforeach()
  list(REMOVE_DUPLICATES entries)

  foreach(entry IN LISTS entries)
    if(NOT entry MATCHES "^([0-9]+)\\.([0-9])([a-z]?)(\\+PTX)?$")
      list(APPEND left_out "${entry} (no architecture)")
      continue()
    endif()
    set(base "${CMAKE_MATCH_1}${CMAKE_MATCH_2}")
    set(number "${base}${CMAKE_MATCH_3}")
    set(ptx "${CMAKE_MATCH_4}")
    if(base LESS OLDEST_ARCHITECTURE)
      list(APPEND left_out "${entry} (older than 8.0, the oldest that the kernels can use)")
      continue()
    endif()
    execute_process(
      COMMAND "${NVCC}" --dryrun -gencode "arch=compute_${number},code=sm_${number}" -c try_nvcc.cu
      WORKING_DIRECTORY "${CMAKE_BINARY_DIR}"
      RESULT_VARIABLE result OUTPUT_QUIET ERROR_QUIET)
    if(NOT result EQUAL 0)
      list(APPEND left_out "${entry} (unknown to ${NVCC})")
      continue()
    endif()
    list(APPEND built "${entry}")
    list(APPEND cmake "${number}-real")
    if(ptx)
      list(APPEND cmake "${number}-virtual")
    endif()
  endforeach()
  list(REMOVE_DUPLICATES cmake)
  set(${BUILT} "${built}" PARENT_SCOPE)
  set(${CMAKE} "${cmake}" PARENT_SCOPE)
  set(${LEFT_OUT} "${left_out}" PARENT_SCOPE)
endfunction()
