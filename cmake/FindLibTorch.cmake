# Finds LibTorch without asking for a CUDA toolkit, which the Torch package of a CUDA build demands.
#
# Looked for, in this order: -DLIBTORCH_ROOT / $LIBTORCH_ROOT, CMAKE_PREFIX_PATH, the `torch` that Python can import:
# that of Python_EXECUTABLE, else of the first python3. In a build by pip only the first: it is the environment
# that is installed into.
# Defines the target LibTorch::LibTorch, and LIBTORCH_ROOT, LIBTORCH_LIB_DIR, LibTorch_VERSION, and
# LIBTORCH_OPENMP_LIBRARY, the OpenMP runtime that LibTorch brings along, if it does.

set(_libtorch_hints)
if(LIBTORCH_ROOT)
  list(APPEND _libtorch_hints "${LIBTORCH_ROOT}")
endif()
if(DEFINED ENV{LIBTORCH_ROOT})
  list(APPEND _libtorch_hints "$ENV{LIBTORCH_ROOT}")
endif()
foreach(_prefix IN LISTS CMAKE_PREFIX_PATH)
  list(APPEND _libtorch_hints "${_prefix}" "${_prefix}/torch" "${_prefix}/libtorch")
endforeach()

find_path(LibTorch_INCLUDE_DIR ATen/ATen.h HINTS ${_libtorch_hints} PATH_SUFFIXES include NO_DEFAULT_PATH)
if(NOT LibTorch_INCLUDE_DIR)
  if(NOT SKBUILD)
    find_program(_libtorch_python NAMES python3 python)
    mark_as_advanced(_libtorch_python)
  endif()
  # -E: pip builds with a PYTHONPATH that hides the packages of the environment that it installs into.
  foreach(_python "${Python_EXECUTABLE}" "${Python_EXECUTABLE};-E" "${_libtorch_python}")
    if(_python AND NOT LibTorch_INCLUDE_DIR)
      execute_process(
        COMMAND ${_python} -c
                "import importlib.util as u; s = u.find_spec('torch'); print(s.submodule_search_locations[0] if s else '')"
        OUTPUT_VARIABLE _libtorch_from_python OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
      if(_libtorch_from_python)
        find_path(LibTorch_INCLUDE_DIR ATen/ATen.h HINTS "${_libtorch_from_python}" PATH_SUFFIXES include NO_DEFAULT_PATH)
      endif()
    endif()
  endforeach()
endif()

if(LibTorch_INCLUDE_DIR)
  get_filename_component(LIBTORCH_ROOT "${LibTorch_INCLUDE_DIR}" DIRECTORY)
  set(LIBTORCH_LIB_DIR "${LIBTORCH_ROOT}/lib")
  find_library(LibTorch_CPU_LIBRARY torch_cpu HINTS "${LIBTORCH_LIB_DIR}" NO_DEFAULT_PATH)
  find_library(LibTorch_C10_LIBRARY c10 HINTS "${LIBTORCH_LIB_DIR}" NO_DEFAULT_PATH)
  find_library(LibTorch_CUDA_LIBRARY torch_cuda HINTS "${LIBTORCH_LIB_DIR}" NO_DEFAULT_PATH)
  find_library(LibTorch_C10_CUDA_LIBRARY c10_cuda HINTS "${LIBTORCH_LIB_DIR}" NO_DEFAULT_PATH)
  file(GLOB LIBTORCH_OPENMP_LIBRARY "${LIBTORCH_LIB_DIR}/libgomp*.so*" "${LIBTORCH_LIB_DIR}/libiomp5.so")
  foreach(_header torch/headeronly/version.h torch/csrc/api/include/torch/version.h)
    if(EXISTS "${LibTorch_INCLUDE_DIR}/${_header}" AND NOT LibTorch_VERSION)
      foreach(_part MAJOR MINOR PATCH)
        file(STRINGS "${LibTorch_INCLUDE_DIR}/${_header}" _line REGEX "define TORCH_VERSION_${_part} [0-9]+")
        string(REGEX MATCH "[0-9]+" _libtorch_${_part} "${_line}")
      endforeach()
      if(_line)
        set(LibTorch_VERSION "${_libtorch_MAJOR}.${_libtorch_MINOR}.${_libtorch_PATCH}")
      endif()
    endif()
  endforeach()
endif()

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(LibTorch
  REQUIRED_VARS LibTorch_CPU_LIBRARY LibTorch_C10_LIBRARY LibTorch_INCLUDE_DIR
  VERSION_VAR LibTorch_VERSION
  REASON_FAILURE_MESSAGE
    "install it with tools/setup.sh or `pip install torch`, or set LIBTORCH_ROOT to a folder with include/ and lib/")

if(LibTorch_FOUND AND NOT TARGET LibTorch::LibTorch)
  add_library(LibTorch::LibTorch INTERFACE IMPORTED)
  set_target_properties(LibTorch::LibTorch PROPERTIES
    INTERFACE_INCLUDE_DIRECTORIES "${LibTorch_INCLUDE_DIR};${LibTorch_INCLUDE_DIR}/torch/csrc/api/include"
    INTERFACE_SYSTEM_INCLUDE_DIRECTORIES "${LibTorch_INCLUDE_DIR};${LibTorch_INCLUDE_DIR}/torch/csrc/api/include"
    INTERFACE_COMPILE_DEFINITIONS "_GLIBCXX_USE_CXX11_ABI=1;USE_DISTRIBUTED;USE_C10D_GLOO")
  set(_libtorch_link "${LibTorch_CPU_LIBRARY}" "${LibTorch_C10_LIBRARY}")
  if(LibTorch_CUDA_LIBRARY AND LibTorch_C10_CUDA_LIBRARY)
    # Registered by their constructors only: the linker must not drop them for want of a used symbol.
    list(PREPEND _libtorch_link "-Wl,--no-as-needed" "${LibTorch_CUDA_LIBRARY}" "${LibTorch_C10_CUDA_LIBRARY}" "-Wl,--as-needed")
  endif()
  set_property(TARGET LibTorch::LibTorch PROPERTY INTERFACE_LINK_LIBRARIES ${_libtorch_link})
  set_property(TARGET LibTorch::LibTorch PROPERTY INTERFACE_LINK_OPTIONS "-Wl,--allow-shlib-undefined")
endif()
mark_as_advanced(LibTorch_INCLUDE_DIR LibTorch_CPU_LIBRARY LibTorch_C10_LIBRARY LibTorch_CUDA_LIBRARY LibTorch_C10_CUDA_LIBRARY)
