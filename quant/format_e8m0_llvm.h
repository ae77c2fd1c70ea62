// format_e8m0_llvm.h -- LLVM's own conversion to e8m0 (APFloat, nearest), in builds that found one.
#pragma once

#include "harness/base.h"

DECLARATIONS_BEGIN

// Local. The addresses are NULL in builds without it.
OPTIONAL_SYMBOL int format_e8m0_llvm_code(float value);
OPTIONAL_SYMBOL const char *format_e8m0_llvm_version(void); // "20.1.2"

DECLARATIONS_END
