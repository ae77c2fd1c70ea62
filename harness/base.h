// base.h -- what every header needs: the C linkage guard for headers that nvcc reads as C++, and
// the integer types.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
#define DECLARATIONS_BEGIN extern "C" {
#define DECLARATIONS_END   }
#define NORETURN           [[noreturn]]
#else
#define DECLARATIONS_BEGIN
#define DECLARATIONS_END
#define NORETURN _Noreturn
#endif

#define COUNT_OF(array) (sizeof(array) / sizeof((array)[0]))

// A function that only some builds have (CUDA rows): its address is NULL where it was not compiled.
#define OPTIONAL_SYMBOL __attribute__((weak))

#if defined(__GNUC__)
#define PRINTF_LIKE(format_index, first_index)                                                     \
    __attribute__((format(printf, format_index, first_index)))
#else
#define PRINTF_LIKE(format_index, first_index)
#endif
