// format_e8m0_llvm.cc -- what the LLVM beside us makes of an f32; built where one of 20 or later is
// found (llvm.cmake).
#include "quant/format_e8m0_llvm.h"

#include <llvm/ADT/APFloat.h>
#include <llvm/Config/llvm-config.h>

const char *format_e8m0_llvm_version()
{
    return LLVM_VERSION_STRING;
}

int format_e8m0_llvm_code(float value)
{
    llvm::APFloat number(value);
    bool loses = false;
    number.convert(llvm::APFloat::Float8E8M0FNU(), llvm::APFloat::rmNearestTiesToEven, &loses);
    return static_cast<int>(number.bitcastToAPInt().getZExtValue());
}
