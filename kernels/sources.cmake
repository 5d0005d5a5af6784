# What the libraries and the tests of this folder compile, and for which instructions.
set(sources conv gather geometry pack windows target_scalar targets)
if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
  list(APPEND sources target_avx2 target_avx512_vnni target_avx512_vbmi)
endif()
list(TRANSFORM sources PREPEND ${CMAKE_CURRENT_LIST_DIR}/src/)
list(TRANSFORM sources APPEND .cpp)
# Each target is compiled for its own instructions; everything else for any CPU, because everything else runs on any.
function(compile_for file)
  set_source_files_properties(${CMAKE_CURRENT_FUNCTION_LIST_DIR}/src/${file}.cpp PROPERTIES COMPILE_OPTIONS "${ARGN}")
endfunction()
# GCC's own headers warn about the registers they leave undefined on purpose.
set(avx512 -mavx512f -mavx512bw -mavx512vl -mavx512vnni -mfma -mpopcnt -Wno-uninitialized -Wno-maybe-uninitialized)
compile_for(target_avx2 -mavx2 -mfma)
compile_for(target_avx512_vnni ${avx512})
if(DP_EMULATE_VBMI) # of the tests: on a CPU without it
  compile_for(target_avx512_vbmi ${avx512})
else()
  compile_for(target_avx512_vbmi ${avx512} -mavx512vbmi)
endif()

add_library(kernels OBJECT ${sources})
target_include_directories(kernels PUBLIC ${CMAKE_CURRENT_LIST_DIR}/include)
# Results are equal bit by bit on every target: no product may be contracted into a sum behind our back.
target_compile_options(kernels PRIVATE -O3 -Wall -Wextra -ffp-contract=off)
if(DP_EMULATE_VBMI)
  target_compile_definitions(kernels PRIVATE DP_EMULATE_VBMI)
endif()
