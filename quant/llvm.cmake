# llvm.cmake -- an LLVM that knows Float8E8M0FNU (20 or later), for one column of `meshwork e8m0`. Sets have_llvm.
#
# MESHWORK_LLVM names its folder (with include/ and lib/); else the newest below /usr/lib. A few objects of its static
# LLVMSupport are linked; the shared library would cost every start of the program its loading. Judged by whether a
# program builds, not by its CMake files, which stop the configuration when a package they want is absent.
set(MESHWORK_LLVM "" CACHE PATH "An LLVM of 20 or later; empty: the newest below /usr/lib")
set(have_llvm FALSE)
file(GLOB llvm_folders LIST_DIRECTORIES true "/usr/lib/llvm-*" "/usr/lib64/llvm*")
list(SORT llvm_folders COMPARE NATURAL ORDER DESCENDING)
list(PREPEND llvm_folders ${MESHWORK_LLVM})
find_path(llvm_include llvm/ADT/APFloat.h HINTS ${llvm_folders} PATH_SUFFIXES include)
find_library(llvm_support LLVMSupport HINTS ${llvm_folders} PATH_SUFFIXES lib)
find_library(llvm_demangle LLVMDemangle HINTS ${llvm_folders} PATH_SUFFIXES lib)
include(CheckLanguage)
if(llvm_include AND llvm_support AND llvm_demangle)
  check_language(CXX)
endif()
if(CMAKE_CXX_COMPILER)
  enable_language(CXX)
  include(CheckCXXSourceCompiles)
  set(CMAKE_REQUIRED_FLAGS -std=c++17)
  set(CMAKE_REQUIRED_INCLUDES "${llvm_include}")
  set(CMAKE_REQUIRED_LIBRARIES "${llvm_support}" "${llvm_demangle}" Threads::Threads ${CMAKE_DL_LIBS})
  check_cxx_source_compiles("
    #include <llvm/ADT/APFloat.h>
    int main()
    {
        llvm::APFloat number(1.5f);
        bool loses = false;
        number.convert(llvm::APFloat::Float8E8M0FNU(), llvm::APFloat::rmNearestTiesToEven, &loses);
        return loses;
    }" have_llvm_e8m0)
  if(have_llvm_e8m0)
    set(have_llvm TRUE)
  endif()
  unset(CMAKE_REQUIRED_FLAGS)
  unset(CMAKE_REQUIRED_INCLUDES)
  unset(CMAKE_REQUIRED_LIBRARIES)
endif()
if(have_llvm)
  add_library(quant_llvm OBJECT quant/format_e8m0_llvm.cc)
  target_include_directories(quant_llvm PRIVATE "${CMAKE_SOURCE_DIR}")
  target_include_directories(quant_llvm SYSTEM PRIVATE "${llvm_include}")
  target_compile_options(quant_llvm PRIVATE -std=c++17 -fno-rtti -Wall -Wextra)
  list(APPEND all_objects $<TARGET_OBJECTS:quant_llvm>)
  target_link_libraries(meshwork_flags INTERFACE "${llvm_support}" "${llvm_demangle}" stdc++ ${CMAKE_DL_LIBS})
endif()
message(STATUS "meshwork: llvm=${have_llvm}")
