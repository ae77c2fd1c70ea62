# CUDA, NCCL and cuBLASLt: from the toolkit, or (MESHWORK_TORCH) from an existing PyTorch installation.
#
# Sets have_nccl and adds the libraries to meshwork_flags. The compiler is always the toolkit's nvcc; only the libraries
# that are loaded at run time come from PyTorch's wheels.
find_package(CUDAToolkit REQUIRED)
target_include_directories(meshwork_flags SYSTEM INTERFACE ${CUDAToolkit_INCLUDE_DIRS})
target_compile_options(meshwork_flags INTERFACE
  "$<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=-Wall,-Wextra,-Wno-unused-parameter;--fmad=true;-lineinfo>")
set(cuda_hints "${CUDAToolkit_LIBRARY_DIR}" "${CUDAToolkit_LIBRARY_ROOT}/lib" "${CUDAToolkit_TARGET_DIR}/lib")
set(find_options "")

if(MESHWORK_TORCH)
  execute_process(COMMAND ${MESHWORK_TORCH} -c
    "import os, torch, nvidia; print(';'.join(os.path.join(p, d) for p in nvidia.__path__ for d in sorted(os.listdir(p)) if os.path.isdir(os.path.join(p, d, 'lib'))))"
    OUTPUT_VARIABLE wheels OUTPUT_STRIP_TRAILING_WHITESPACE RESULT_VARIABLE rc ERROR_VARIABLE why)
  if(NOT rc EQUAL 0 OR NOT wheels)
    message(FATAL_ERROR "MESHWORK_TORCH=${MESHWORK_TORCH}: its PyTorch brings no CUDA libraries\n${why}")
  endif()
  set(cuda_hints)
  foreach(wheel ${wheels})
    list(APPEND cuda_hints "${wheel}/lib")
    list(APPEND torch_rpath "${wheel}/lib")
    if(EXISTS "${wheel}/include/nccl.h")
      set(nccl_include_hint "${wheel}/include")
    endif()
  endforeach()
  set(find_options NO_DEFAULT_PATH)
  set(CMAKE_BUILD_RPATH "${torch_rpath}")
  set(CMAKE_INSTALL_RPATH "${torch_rpath}")
endif()

# Wheels carry only versioned names (libcudart.so.13).
function(find_cuda_library variable)
  find_library(${variable} NAMES ${ARGN} HINTS ${cuda_hints} PATHS ${cuda_hints} ${find_options})
endfunction()
find_cuda_library(MESHWORK_CUDART cudart libcudart.so.13 libcudart.so.12)
find_cuda_library(MESHWORK_CUBLASLT cublasLt libcublasLt.so.13 libcublasLt.so.12)
if(MESHWORK_NCCL)
  find_cuda_library(MESHWORK_NCCL_LIBRARY nccl libnccl.so.2)
  find_path(MESHWORK_NCCL_INCLUDE nccl.h HINTS ${nccl_include_hint} ${CUDAToolkit_INCLUDE_DIRS})
endif()
if(NOT MESHWORK_CUDART OR NOT MESHWORK_CUBLASLT)
  message(FATAL_ERROR "CUDA was found, but not cudart and cuBLASLt (looked in ${cuda_hints}); use -DMESHWORK_CUDA=OFF")
endif()
set(CMAKE_CUDA_RUNTIME_LIBRARY None)
target_link_libraries(meshwork_flags INTERFACE ${MESHWORK_CUDART} ${MESHWORK_CUBLASLT})
if(MESHWORK_NCCL_LIBRARY AND MESHWORK_NCCL_INCLUDE)
  set(have_nccl TRUE)
  target_link_libraries(meshwork_flags INTERFACE ${MESHWORK_NCCL_LIBRARY})
  target_include_directories(meshwork_flags SYSTEM BEFORE INTERFACE ${MESHWORK_NCCL_INCLUDE})
endif()
