# Cross-compile for a Jetson's CPU (Debian and Ubuntu: apt-get install g++-aarch64-linux-gnu):
#     cmake -S plugins -B build/aarch64 --toolchain cmake/aarch64.cmake -DTFISEG_CUDA=OFF
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
set(CMAKE_FIND_ROOT_PATH_MODE_LIBRARY ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_INCLUDE ONLY)
