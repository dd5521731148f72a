# How units are compiled together. A compiler spends more on what a unit includes than on what stands in it, so several
# units of a room are compiled as one: a fresh build takes a fraction of the time. With DYNSLICE_UNITY=OFF each is on
# its own, which is quicker after a change of one file.
option(DYNSLICE_UNITY "Compile several units of a room as one" ON)
option(DYNSLICE_PRECOMPILED_HEADERS "Parse LibTorch's headers once for all units" ON)

# dynslice_group_units(target room size files...): groups of at most `size` of a room's files. Files with compile
# options of their own stay alone.
function(dynslice_group_units target room size)
  if(NOT DYNSLICE_UNITY)
    return()
  endif()
  set_target_properties(${target} PROPERTIES UNITY_BUILD ON UNITY_BUILD_MODE GROUP)
  # It takes the files of a group for headers, whose anonymous namespaces would differ from unit to unit.
  target_compile_options(${target} PRIVATE -Wno-subobject-linkage)
  string(MAKE_C_IDENTIFIER "${room}" _room)
  set(_count 0)
  foreach(_file IN LISTS ARGN)
    math(EXPR _group "${_count} / ${size}")
    set_source_files_properties("${_file}" PROPERTIES UNITY_GROUP "${_room}_${_group}")
    math(EXPR _count "${_count} + 1")
  endforeach()
endfunction()

# dynslice_optimize_little(target): for what puts work in order and takes no time of a run: -Og takes half of the time
# that -O2 needs to compile it. With it GCC 12 warns of its own <regex>.
function(dynslice_optimize_little target)
  target_compile_options(${target} PRIVATE "$<$<CONFIG:Release>:-Og;-Wno-maybe-uninitialized>")
endfunction()

# dynslice_read_source(file variable): the text of a source file that becomes a string of the program.
function(dynslice_read_source file variable)
  set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS "${CMAKE_CURRENT_SOURCE_DIR}/${file}")
  file(READ "${CMAKE_CURRENT_SOURCE_DIR}/${file}" _text)
  set(${variable} "${_text}" PARENT_SCOPE)
endfunction()

# dynslice_reuse_precompiled(target carrier): the target's units begin with the headers that the carrier precompiles.
function(dynslice_reuse_precompiled target carrier)
  if(DYNSLICE_PRECOMPILED_HEADERS)
    target_precompile_headers(${target} REUSE_FROM ${carrier})
  endif()
endfunction()
