# What the libraries and the tests of this folder compile, and for which instructions.
set(sources conv gate gather geometry pack windows targets)
set(targets "")

# One line a target, best last. Each is compiled for its own instructions; everything else for any CPU, because everything
# else runs on any. Tests may want fewer: DP_TARGETS.
function(add_kernel_target name)
  if(DP_TARGETS AND NOT name IN_LIST DP_TARGETS)
    return()
  endif()
  list(APPEND sources target_${name})
  set_source_files_properties(${CMAKE_CURRENT_FUNCTION_LIST_DIR}/src/target_${name}.cpp PROPERTIES COMPILE_OPTIONS "${ARGN}")
  set(sources ${sources} PARENT_SCOPE)
  set(targets "${targets}TARGET(${name})\n" PARENT_SCOPE)
endfunction()

add_kernel_target(scalar)
if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
  # GCC's own headers warn about the registers they leave undefined on purpose.
  set(avx512 -mavx512f -mavx512bw -mavx512vl -mavx512vnni -mfma -mpopcnt -Wno-uninitialized -Wno-maybe-uninitialized)
  if(NOT DP_EMULATE_VBMI)
    set(vbmi -mavx512vbmi)
  endif()
  add_kernel_target(avx2 -mavx2 -mfma)
  add_kernel_target(avx512_vnni ${avx512})
  add_kernel_target(avx512_vbmi ${avx512} ${vbmi})
  if(targets MATCHES "avx512_vbmi" AND (DP_EMULATE_VBMI OR DP_TRAP_VBMI)) # of the tests: see target_avx512_vbmi.cpp
    string(APPEND targets "TARGET(avx512_windows)\n")
  endif()
endif()
file(CONFIGURE OUTPUT targets.inc CONTENT "${targets}")

list(TRANSFORM sources PREPEND ${CMAKE_CURRENT_LIST_DIR}/src/)
list(TRANSFORM sources APPEND .cpp)
add_library(kernels OBJECT ${sources})
target_include_directories(kernels PUBLIC ${CMAKE_CURRENT_LIST_DIR}/include PRIVATE ${CMAKE_CURRENT_BINARY_DIR})
# Results are equal bit by bit on every target: no product may be contracted into a sum behind our back.
target_compile_options(kernels PRIVATE -O3 -Wall -Wextra -ffp-contract=off)
target_compile_definitions(kernels PRIVATE $<$<BOOL:${DP_EMULATE_VBMI}>:DP_EMULATE_VBMI>)
