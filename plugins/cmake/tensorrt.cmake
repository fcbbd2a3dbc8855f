# The operator as a TensorRT plugin, for TensorRT's plugin registry, and as a library that registers itself when it is opened.
if(NOT TENSORRT_INCLUDE_DIR)
    find_path(found NvInferRuntime.h PATH_SUFFIXES ${CMAKE_LIBRARY_ARCHITECTURE} HINTS /usr/local/tensorrt/include NO_CACHE)
    if(NOT found)
        message(FATAL_ERROR "TensorRT's headers are not on this system. Give -DTENSORRT_INCLUDE_DIR=FOLDER, or -DTFISEG_TENSORRT=OFF for the C API alone; "
                            "`tfiseg plugin build` also finds those of the PyPI package kernel-lens (pip install --no-deps kernel-lens==2.0.1)")
    endif()
    set(TENSORRT_INCLUDE_DIR ${found})
endif()
add_library(tfiseg_plugin_objects OBJECT csrc/tensorrt_plugin.cpp)
set_target_properties(tfiseg_plugin_objects PROPERTIES
    CXX_STANDARD 17 CXX_STANDARD_REQUIRED ON POSITION_INDEPENDENT_CODE ON CXX_VISIBILITY_PRESET hidden VISIBILITY_INLINES_HIDDEN ON)
target_compile_options(tfiseg_plugin_objects PRIVATE -O3 -ffp-contract=off -Wall -Wextra)
target_include_directories(tfiseg_plugin_objects SYSTEM PRIVATE ${TENSORRT_INCLUDE_DIR} ${CMAKE_CUDA_TOOLKIT_INCLUDE_DIRECTORIES})

tfiseg_library(tfiseg_plugin exports.map $<TARGET_OBJECTS:tfiseg_plugin_objects>)
tfiseg_library(tfiseg_plugin_autoregister tfiseg.map $<TARGET_OBJECTS:tfiseg_plugin_objects> csrc/tensorrt_autoregister.cpp)
set_target_properties(tfiseg_plugin_autoregister PROPERTIES CXX_STANDARD 17 CXX_STANDARD_REQUIRED ON)
target_compile_options(tfiseg_plugin_autoregister PRIVATE -Wall -Wextra)
target_include_directories(tfiseg_plugin_autoregister SYSTEM PRIVATE ${TENSORRT_INCLUDE_DIR} ${CMAKE_CUDA_TOOLKIT_INCLUDE_DIRECTORIES})
target_link_libraries(tfiseg_plugin_autoregister PRIVATE ${CMAKE_DL_LIBS})
target_link_options(tfiseg_plugin_autoregister PRIVATE -Wl,-z,nodelete)  # TensorRT keeps a pointer into it
