# CUDA's part of the operator, for all architectures that nvcc knows.
enable_language(CUDA)
if(CMAKE_CUDA_COMPILER_VERSION VERSION_LESS 12.1)
    message(FATAL_ERROR "nvcc ${CMAKE_CUDA_COMPILER_VERSION} is too old: the kernels' parameters are up to 7 KB, which needs CUDA 12.1 or later. "
                        "Set CUDACXX to a newer nvcc, or pip install \".[plugin]\" in the repository")
endif()
execute_process(COMMAND ${CMAKE_CUDA_COMPILER} --list-gpu-arch OUTPUT_VARIABLE known COMMAND_ERROR_IS_FATAL ANY)
set(architectures)
foreach(architecture IN LISTS TFISEG_ARCHITECTURES)
    if(architecture STREQUAL "native")
        list(APPEND architectures native)
    elseif(known MATCHES "compute_${architecture}([^0-9]|$)")
        list(APPEND architectures ${architecture}-real)
    else()
        message(STATUS "nvcc ${CMAKE_CUDA_COMPILER_VERSION} does not know compute capability ${architecture}: left out")
    endif()
endforeach()
if(NOT architectures STREQUAL "native")
    list(APPEND architectures 75-virtual)  # PTX, which any other GPU since Turing compiles for itself
endif()
target_sources(tfiseg_objects PRIVATE csrc/cluster_cuda.cu)
set_target_properties(tfiseg_objects PROPERTIES
    CUDA_STANDARD 17 CUDA_STANDARD_REQUIRED ON CUDA_VISIBILITY_PRESET hidden CUDA_ARCHITECTURES "${architectures}")
target_compile_definitions(tfiseg_objects PRIVATE TFISEG_WITH_CUDA)
target_compile_options(tfiseg_objects PRIVATE
    $<$<COMPILE_LANGUAGE:CUDA>:-O3 -fmad=false -Xcompiler=-ffp-contract=off,-Wall,-Wextra -Xptxas=-v>)
