# What `cmake --install` puts in place: program, libraries, headers, CMake package, man page, shell completions.
include(CMakePackageConfigHelpers)

set(_package_dir "${CMAKE_INSTALL_LIBDIR}/cmake/dynslice")
# Shared files of a Python package belong beside the environment's own, where man and the shells look.
set(_share_dir "${CMAKE_INSTALL_DATADIR}")
if(SKBUILD)
  set(_share_dir "${SKBUILD_DATA_DIR}/share")
endif()

install(TARGETS dynslice EXPORT dynsliceTargets
  LIBRARY DESTINATION "${CMAKE_INSTALL_LIBDIR}" RUNTIME DESTINATION "${CMAKE_INSTALL_BINDIR}")
install(TARGETS dynslice_cli LIBRARY DESTINATION "${CMAKE_INSTALL_LIBDIR}")
install(TARGETS dynslice_program RUNTIME DESTINATION "${CMAKE_INSTALL_BINDIR}")
install(DIRECTORY "${PROJECT_SOURCE_DIR}/include/dynslice" DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}" FILES_MATCHING PATTERN "*.h")

install(EXPORT dynsliceTargets NAMESPACE dynslice:: DESTINATION "${_package_dir}")
configure_package_config_file(cmake/dynsliceConfig.cmake.in "${PROJECT_BINARY_DIR}/cmake/dynsliceConfig.cmake"
  INSTALL_DESTINATION "${_package_dir}" NO_SET_AND_CHECK_MACRO)
# Before 1.0 a minor version may change anything.
write_basic_package_version_file("${PROJECT_BINARY_DIR}/cmake/dynsliceConfigVersion.cmake" COMPATIBILITY SameMinorVersion)
install(FILES "${PROJECT_BINARY_DIR}/cmake/dynsliceConfig.cmake" "${PROJECT_BINARY_DIR}/cmake/dynsliceConfigVersion.cmake"
              "${PROJECT_SOURCE_DIR}/cmake/FindLibTorch.cmake"
  DESTINATION "${_package_dir}")

# dynslice_printed(path arguments...): a file under share/ that the program prints.
set(_printed_files)
function(dynslice_printed path)
  set(_file "${PROJECT_BINARY_DIR}/share/${path}")
  get_filename_component(_folder "${_file}" DIRECTORY)
  file(MAKE_DIRECTORY "${_folder}")
  add_custom_command(OUTPUT "${_file}" COMMAND dynslice_program ${ARGN} > "${_file}" DEPENDS dynslice_program VERBATIM)
  get_filename_component(_destination "${_share_dir}/${path}" DIRECTORY)
  install(FILES "${_file}" DESTINATION "${_destination}")
  list(APPEND _printed_files "${_file}")
  set(_printed_files "${_printed_files}" PARENT_SCOPE)
endfunction()
dynslice_printed(man/man1/dynslice.1 reference man)
dynslice_printed(bash-completion/completions/dynslice completion bash)
dynslice_printed(zsh/site-functions/_dynslice completion zsh)
dynslice_printed(fish/vendor_completions.d/dynslice.fish completion fish)
add_custom_target(dynslice_printed_files ALL DEPENDS ${_printed_files})
