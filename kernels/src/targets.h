// One line for each target: this is all there is to add besides its file. Best last.
#pragma once

#include "conv.h"

namespace dp {

Target scalar_target();
#if defined(__x86_64__)
Target avx2_target();
Target avx512_vnni_target();
Target avx512_vbmi_target();
#if defined(DP_EMULATE_VBMI) || defined(DP_TRAP_VBMI)
Target avx512_windows_target(); // of the tests
#endif
#endif

} // namespace dp
