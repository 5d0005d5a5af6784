// One line for each target: this is all there is to add besides its file. Best last.
#pragma once

#include "conv.h"

namespace dp {

Target scalar_target();
#if defined(__x86_64__)
Target avx2_target();
Target avx512_vnni_target();
#endif

} // namespace dp
