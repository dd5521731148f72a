# The tests that run the program (integration) and its peers (interop): one CTest test a folder, so that what they load
# (LibTorch, transformers) and the tiny models that they make serve all files.
#
# DYNSLICE_TEST_PYTHON is a Python with what tests/requirements.txt names; tools/setup.sh --tests makes one.
set(DYNSLICE_TEST_PYTHON "python3" CACHE STRING "Python with the packages of tests/requirements.txt")

# Small programs through which Python tests reach one part of the library.
function(dynslice_test_program name source)
  if(EXISTS "${CMAKE_CURRENT_SOURCE_DIR}/${source}")
    add_executable(${name} "${source}")
    target_link_libraries(${name} PRIVATE dynslice dynslice_build_options)
    target_include_directories(${name} PRIVATE "${PROJECT_SOURCE_DIR}/src")
    dynslice_reuse_precompiled(${name} dynslice_precompiled)
  endif()
endfunction()

dynslice_test_program(tokenize_main interop/tokenize_main.cpp)
dynslice_test_program(dequantize_main interop/dequantize_main.cpp)
dynslice_test_program(logits_main interop/logits_main.cpp)
dynslice_test_program(template_main interop/template_main.cpp)
dynslice_test_program(hub_main integration/hub_main.cpp)
dynslice_test_program(warm_main warm_main.cpp)
target_link_libraries(warm_main PRIVATE dynslice_cli dynslice_definitions)

# dynslice_python_tests(label timeout processes distribution): tests/<label>/test_*.py, by so many processes.
# `distribution` is pytest-xdist's: which test a process takes when it is done with one.
include(ProcessorCount)
ProcessorCount(_processors)
function(dynslice_python_tests label timeout processes distribution)
  add_test(NAME ${label}
    COMMAND "${DYNSLICE_TEST_PYTHON}" -m pytest -q -ra --tb=short --color=no -p no:cacheprovider -p xdist -n ${processes}
            --dist ${distribution} --rootdir "${CMAKE_CURRENT_SOURCE_DIR}" --junitxml "${CMAKE_BINARY_DIR}/junit/${label}.xml"
            "${CMAKE_CURRENT_SOURCE_DIR}/${label}"
    WORKING_DIRECTORY "${CMAKE_CURRENT_SOURCE_DIR}")
  # One thread each: more would wait for each other.
  # Skipped: pytest's code for "nothing collected" (all deselected), or a summary of skips alone.
  set_tests_properties(${label} PROPERTIES
    LABELS ${label} TIMEOUT ${timeout} RUN_SERIAL ON
    SKIP_RETURN_CODE 5 SKIP_REGULAR_EXPRESSION "\n[0-9]+ skipped in "
    ENVIRONMENT "OMP_NUM_THREADS=1;DYNSLICE_BUILD_DIR=${CMAKE_BINARY_DIR};PYTHONDONTWRITEBYTECODE=1;PYTEST_DISABLE_PLUGIN_AUTOLOAD=1;OMP_WAIT_POLICY=passive")
endfunction()

# One process more than cores: many of its tests wait, for a server or for a program to be stopped.
math(EXPR _more_processes "${_processors} + 1")
dynslice_python_tests(integration 3600 ${_more_processes} worksteal)
# File by file: a file's tests share the models that peers have loaded, which takes longer than many a test.
dynslice_python_tests(interop 3600 ${_processors} loadfile)
