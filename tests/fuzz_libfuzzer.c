// One target of fuzz_targets.h under libFuzzer; FUZZ_TARGET is its function. Built by fuzz.sh.
#include "tests/fuzz_targets.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    FUZZ_TARGET(data, bytes);
    return 0;
}
