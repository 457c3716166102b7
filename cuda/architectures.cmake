# Sets CMAKE_CUDA_ARCHITECTURES from MB_CUDA_ARCHITECTURES. It must be set before CUDA is enabled as a language.
#
# 90a: Hopper with its own instructions (wgmma, bulk copies). The PTX of compute_80 covers whatever comes later.
set(MB_CUDA_RELEASE 80-real 86-real 89-real 90a-real 100-real 120-real 80-virtual)

if(MB_CUDA_ARCHITECTURES STREQUAL "all")
  set(CMAKE_CUDA_ARCHITECTURES ${MB_CUDA_RELEASE})
elseif(MB_CUDA_ARCHITECTURES)
  set(CMAKE_CUDA_ARCHITECTURES ${MB_CUDA_ARCHITECTURES})
else()
  execute_process(COMMAND nvidia-smi --query-gpu=compute_cap --format=csv,noheader
    OUTPUT_VARIABLE found ERROR_QUIET OUTPUT_STRIP_TRAILING_WHITESPACE)
  string(REGEX MATCHALL "[0-9]+\\.[0-9]+" found "${found}")
  list(REMOVE_DUPLICATES found)
  set(CMAKE_CUDA_ARCHITECTURES)
  foreach(capability ${found})
    string(REPLACE "." "" number ${capability})
    list(APPEND CMAKE_CUDA_ARCHITECTURES ${number}-real)
  endforeach()
  string(REPLACE "90-real" "90a-real" CMAKE_CUDA_ARCHITECTURES "${CMAKE_CUDA_ARCHITECTURES}")
  if(NOT CMAKE_CUDA_ARCHITECTURES)
    set(CMAKE_CUDA_ARCHITECTURES 90a-real)
  endif()
endif()
