# CUDA's part of the operator, for all architectures that nvcc knows.
enable_language(CUDA)
if(CMAKE_CUDA_COMPILER_VERSION VERSION_LESS 12.1)
    message(FATAL_ERROR "nvcc ${CMAKE_CUDA_COMPILER_VERSION} is too old: the kernels' parameters are up to 7 KB, which needs CUDA 12.1 or later. "
                        "Set CUDACXX to a newer nvcc, or pip install \".[plugin]\" in the repository")
endif()
execute_process(COMMAND ${CMAKE_CUDA_COMPILER} --list-gpu-arch OUTPUT_VARIABLE known COMMAND_ERROR_IS_FATAL ANY)
# nvcc spends half of its time on PTX, which is the same for all GPUs before Blackwell, and for all since. So it makes these two, and code
# for each GPU from them.
set(since_turing compute_75)  # the PTX itself, too, for any other GPU
set(architectures OFF)
foreach(architecture IN LISTS TFISEG_ARCHITECTURES)
    if(architecture STREQUAL "native")
        set(architectures native)
    elseif(NOT known MATCHES "compute_${architecture}([^0-9]|$)")
        message(STATUS "nvcc ${CMAKE_CUDA_COMPILER_VERSION} does not know compute capability ${architecture}: left out")
    elseif(architecture LESS 75)
        list(APPEND targets -gencode=arch=compute_${architecture},code=sm_${architecture})
    elseif(architecture LESS 100)
        string(APPEND since_turing ",sm_${architecture}")
    else()
        list(APPEND since_blackwell sm_${architecture})
    endif()
endforeach()
if(NOT architectures)
    list(APPEND targets "-gencode=arch=compute_75,code=[${since_turing}]")
    if(since_blackwell)
        list(JOIN since_blackwell "," since_blackwell)
        list(APPEND targets "-gencode=arch=compute_100,code=[${since_blackwell}]")
    endif()
endif()
target_sources(tfiseg_objects PRIVATE csrc/cluster_cuda.cu)
set_target_properties(tfiseg_objects PROPERTIES
    CUDA_STANDARD 17 CUDA_STANDARD_REQUIRED ON CUDA_VISIBILITY_PRESET hidden CUDA_ARCHITECTURES "${architectures}")
target_compile_definitions(tfiseg_objects PRIVATE TFISEG_WITH_CUDA)
target_compile_options(tfiseg_objects PRIVATE
    "$<$<COMPILE_LANGUAGE:CUDA>:-O3;-fmad=false;${targets};-Xcompiler=-ffp-contract=off,-Wall,-Wextra;-Xptxas=-v>")
