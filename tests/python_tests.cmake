# The tests that run the program (integration) and its peers (interop): one CTest test a Python file.
#
# DYNSLICE_TEST_PYTHON is a Python with what tests/requirements.txt names; tools/setup.sh --tests makes one.
set(DYNSLICE_TEST_PYTHON "python3" CACHE STRING "Python with the packages of tests/requirements.txt")

# Small programs through which Python tests reach one part of the library.
function(dynslice_test_program name source)
  if(EXISTS "${CMAKE_CURRENT_SOURCE_DIR}/${source}")
    add_executable(${name} "${source}")
    target_link_libraries(${name} PRIVATE dynslice dynslice_build_options)
  endif()
endfunction()

dynslice_test_program(tokenize_main interop/tokenize_main.cpp)
dynslice_test_program(dequantize_main interop/dequantize_main.cpp)
dynslice_test_program(logits_main interop/logits_main.cpp)
dynslice_test_program(template_main interop/template_main.cpp)
dynslice_test_program(hub_main integration/hub_main.cpp)

# dynslice_python_tests(label timeout [RUN_SERIAL]): every test_*.py in tests/<label>. Each has a cache folder of its own,
# in which transformers keeps the modeling code of the models that it loads.
function(dynslice_python_tests label timeout)
  cmake_parse_arguments(_arg "RUN_SERIAL" "" "" ${ARGN})
  file(GLOB _files CONFIGURE_DEPENDS "${CMAKE_CURRENT_SOURCE_DIR}/${label}/test_*.py")
  foreach(_file IN LISTS _files)
    get_filename_component(_name "${_file}" NAME_WE)
    string(REGEX REPLACE "^test_" "" _name "${_name}")
    add_test(NAME ${label}.${_name}
      COMMAND "${DYNSLICE_TEST_PYTHON}" -m pytest -q -ra --tb=short --color=no -p no:cacheprovider
              --rootdir "${CMAKE_CURRENT_SOURCE_DIR}" --junitxml "${CMAKE_BINARY_DIR}/junit/${label}.${_name}.xml" "${_file}"
      WORKING_DIRECTORY "${CMAKE_CURRENT_SOURCE_DIR}")
    # Skipped: pytest's code for "nothing collected" (a whole file skipped), or a summary of skips alone.
    set_tests_properties(${label}.${_name} PROPERTIES
      LABELS ${label} TIMEOUT ${timeout} RUN_SERIAL "${_arg_RUN_SERIAL}"
      SKIP_RETURN_CODE 5 SKIP_REGULAR_EXPRESSION "\n[0-9]+ skipped in "
      ENVIRONMENT "HF_HOME=${CMAKE_BINARY_DIR}/hf/${label}.${_name};DYNSLICE_BUILD_DIR=${CMAKE_BINARY_DIR};PYTHONDONTWRITEBYTECODE=1;PYTEST_DISABLE_PLUGIN_AUTOLOAD=1;OMP_WAIT_POLICY=passive")
  endforeach()
endfunction()

dynslice_python_tests(integration 900)
# Peers load whole models and take every core; llama.cpp's threads wait for each other without sleeping.
dynslice_python_tests(interop 1500 RUN_SERIAL)
