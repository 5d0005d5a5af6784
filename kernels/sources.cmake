# What the libraries and the tests of this folder compile, and for which instructions.
set(sources border conv gate gather geometry linear mixed pack windows targets)
set(targets "")

# One file a target, src/target_NAME.cpp. A line of it says `// Target PLACE on PROCESSOR: OPTIONS`: the best has the highest
# place, PROCESSOR is x86_64, aarch64 or any, and OPTIONS are the compiler's. Each is compiled for its own instructions;
# everything else for any CPU, because everything else runs on any. Tests may want fewer: DP_TARGETS.
string(REPLACE AMD64 x86_64 processor "${CMAKE_SYSTEM_PROCESSOR}")
string(REPLACE arm64 aarch64 processor "${processor}")
file(GLOB files CONFIGURE_DEPENDS ${CMAKE_CURRENT_LIST_DIR}/src/target_*.cpp)
foreach(file ${files})
  string(REGEX REPLACE ".*/target_(.*)\\.cpp" "\\1" name ${file})
  file(STRINGS ${file} line REGEX "^// Target [0-9]+ on " LIMIT_COUNT 1)
  if(NOT line MATCHES "^// Target ([0-9]+) on ([a-z0-9_]+):(.*)$")
    message(FATAL_ERROR "${file} has no line `// Target PLACE on PROCESSOR: OPTIONS`: see sources.cmake")
  endif()
  if(CMAKE_MATCH_2 STREQUAL "any" OR CMAKE_MATCH_2 STREQUAL processor)
    if(NOT DP_TARGETS OR name IN_LIST DP_TARGETS)
      math(EXPR place "1000 + ${CMAKE_MATCH_1}") # as many digits each, so that they sort as text
      list(APPEND found "${place} ${name}")
      separate_arguments(options UNIX_COMMAND "${CMAKE_MATCH_3}")
      if(DP_EMULATE_VBMI)
        list(REMOVE_ITEM options -mavx512vbmi)
      endif()
      set_source_files_properties(${file} PROPERTIES COMPILE_OPTIONS "${options}")
    endif()
  endif()
endforeach()
list(SORT found)
foreach(entry ${found})
  string(SUBSTRING ${entry} 5 -1 name)
  list(APPEND sources target_${name})
  string(APPEND targets "TARGET(${name})\n")
endforeach()
if(targets MATCHES "avx512_vbmi" AND (DP_EMULATE_VBMI OR DP_TRAP_VBMI)) # of the tests: see target_avx512_vbmi.cpp
  string(APPEND targets "TARGET(avx512_windows)\n")
endif()
file(CONFIGURE OUTPUT targets.inc CONTENT "${targets}")

list(TRANSFORM sources PREPEND ${CMAKE_CURRENT_LIST_DIR}/src/)
list(TRANSFORM sources APPEND .cpp)
add_library(kernels OBJECT ${sources})
target_include_directories(kernels PUBLIC ${CMAKE_CURRENT_LIST_DIR}/include PRIVATE ${CMAKE_CURRENT_BINARY_DIR})
# Results are equal bit by bit on every target: no product may be contracted into a sum behind our back.
target_compile_options(kernels PRIVATE -O3 -Wall -Wextra -ffp-contract=off)
target_compile_definitions(kernels PRIVATE $<$<BOOL:${DP_EMULATE_VBMI}>:DP_EMULATE_VBMI>)
