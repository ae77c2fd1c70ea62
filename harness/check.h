// check.h -- how the program stops: one message that says which rule broke, the values, where,
// which rank, during which span, and what to change; then one exit code for the whole job.
//
// Three ways to fail, by who knows:
//   CHECK      this rank alone knows: it prints with its rank and takes the others down with it
//   (MPI_Abort). CHECK_ALL  every rank evaluates the same condition on the same values: rank 0
//   prints, all leave quietly together. Error      a parser or file routine reports to its caller,
//   who decides (run_agree turns it into a stop).
//
// The message has a fixed form, so that people and tests can find its parts:
//   meshwork: error: <what, with the values> (<file>:<line>, rank R of N, span S)
//   fix: <what to change>
#pragma once

#include "harness/base.h"

DECLARATIONS_BEGIN

typedef enum ExitCode {
    EXIT_CODE_GOOD = 0,
    EXIT_CODE_CHECK = 1,     // a check or test found a wrong result
    EXIT_CODE_USAGE = 2,     // options, mesh or plan that cannot be
    EXIT_CODE_AMBIGUOUS = 3, // --strict and no clear verdict
    EXIT_CODE_DATA = 65,     // bad input data
    EXIT_CODE_NO_INPUT = 66, // no such input
    EXIT_CODE_HARDWARE = 69, // hardware or a needed service is missing
    EXIT_CODE_INTERNAL = 70, // a rule of our own code broke
    EXIT_CODE_CANT_CREATE = 73,
    EXIT_CODE_IO = 74,
    EXIT_CODE_RESUMABLE = 75, // interrupted; running again goes on
    EXIT_CODE_SKIPPED = 77,
    EXIT_CODE_HANG = 124,
} ExitCode;

// A failure on its way to the caller. exit_code 0 = none.
typedef struct Error {
    int exit_code;
    char what[512];   // rule and values
    char fix[256];    // what to change
    const char *file; // where error_set was called; NULL if the error was filled by hand
    int line;
} Error;

// Local. Fills the error and returns false, so that `return error_set(...)` reads well. Keeps an
// earlier error.
//     error_set(error, exit_code, fix, what_format, ...)
#define error_set(...) error_set_at(__FILE__, __LINE__, __VA_ARGS__)
bool error_set_at(const char *file, int line, Error *error, int exit_code, const char *fix,
                  const char *what_format, ...) PRINTF_LIKE(6, 7);
// Local. Puts words and ": " before what the error says, such as the option or the file that it is
// about. Without an error it does nothing and returns true.
//     return error_prefix(error, "--mesh \"%s\"", layout);
bool error_prefix(Error *error, const char *format, ...) PRINTF_LIKE(2, 3);

// Where the process stands; what every message ends with. The only mutable state at file scope in
// the program.
enum { CHECK_SPAN_BYTES = 64 };
typedef struct CheckContext {
    int rank, ranks;                  // 0 of 1 until run_create
    char span[CHECK_SPAN_BYTES];      // name of the innermost open span, "" outside any
    const char *phase;                // what the command is at, a literal; NULL if unknown
    char reproduce[1024];             // the one command that reproduces this run, "" if unknown
    void (*abort_job)(int exit_code); // takes every rank down; NULL before run_create
    void (*leave_together)(int exit_code); // ordered exit of all ranks; NULL before run_create
    // Asked before an error is printed, since it may be what another rank's mistake has led to.
    // False: somebody else speaks for the job. `others` is what they are doing, "" if unknown. NULL
    // when nobody watches the job.
    bool (*may_speak)(char *others, size_t bytes);
    const struct Run *run; // what the three are about; NULL before run_create
} CheckContext;
CheckContext *check_context(void);

// Local; does not return. The macros below call these.
NORETURN void check_failed(const char *file, int line, int exit_code, const char *fix,
                           const char *what_format, ...) PRINTF_LIKE(5, 6);
NORETURN void check_all_failed(const char *file, int line, int exit_code, const char *fix,
                               const char *what_format, ...) PRINTF_LIKE(5, 6);
// Local. Prints the message of check_failed and returns: for who then stops the job in another way
// (run_agree).
void check_print(const char *file, int line, const char *fix, const char *what_format, ...)
    PRINTF_LIKE(4, 5);
// Local. The same for a failure that lies elsewhere: `where` names its rank and span.
void check_print_for(const CheckContext *where, const char *file, int line, const char *fix,
                     const char *what_format, ...) PRINTF_LIKE(5, 6);
// Local. Names what the command is at from now on: "set-up", "gather". A literal.
void check_phase(const char *phase);
// Local. Prints a warning in the same form on stderr ("meshwork: warning: ...") and returns.
void check_warn(const char *what_format, ...) PRINTF_LIKE(1, 2);

// CHECK(rows <= rows_max, EXIT_CODE_USAGE, "raise --tokens", "rows %d > rows_max %d", rows,
// rows_max);
#define CHECK(condition, exit_code, fix, ...)                                                      \
    do {                                                                                           \
        if (!(condition))                                                                          \
            check_failed(__FILE__, __LINE__, exit_code, fix, __VA_ARGS__);                         \
    } while (0)
#define CHECK_ALL(condition, exit_code, fix, ...)                                                  \
    do {                                                                                           \
        if (!(condition))                                                                          \
            check_all_failed(__FILE__, __LINE__, exit_code, fix, __VA_ARGS__);                     \
    } while (0)
// A rule of our own code: a failure is our bug.
#define CHECK_RULE(condition)                                                                      \
    CHECK(condition, EXIT_CODE_INTERNAL, "this is a bug of meshwork: please report it",            \
          "broken rule: %s", #condition)
// Wrappers for library calls; each expands only where the library's header is included.
#define CHECK_MPI(call)                                                                            \
    do {                                                                                           \
        int mpi_code_ = (call);                                                                    \
        if (mpi_code_ != MPI_SUCCESS) {                                                            \
            char text_[MPI_MAX_ERROR_STRING] = "";                                                 \
            int length_ = 0;                                                                       \
            MPI_Error_string(mpi_code_, text_, &length_);                                          \
            check_failed(__FILE__, __LINE__, EXIT_CODE_HARDWARE, "see mpirun's own message above", \
                         "%s failed: %s", #call, text_);                                           \
        }                                                                                          \
    } while (0)
#define CHECK_CUDA(call)                                                                           \
    do {                                                                                           \
        cudaError_t cuda_code_ = (call);                                                           \
        if (cuda_code_ != cudaSuccess)                                                             \
            check_failed(__FILE__, __LINE__, EXIT_CODE_HARDWARE,                                   \
                         "run `meshwork doctor`, then under compute-sanitizer", "%s failed: %s",   \
                         #call, cudaGetErrorString(cuda_code_));                                   \
    } while (0)
#define CHECK_NCCL(call)                                                                           \
    do {                                                                                           \
        ncclResult_t nccl_code_ = (call);                                                          \
        if (nccl_code_ != ncclSuccess && nccl_code_ != ncclInProgress)                             \
            check_failed(__FILE__, __LINE__, EXIT_CODE_HARDWARE,                                   \
                         "set NCCL_DEBUG=WARN and run again", "%s failed: %s", #call,              \
                         ncclGetErrorString(nccl_code_));                                          \
    } while (0)

DECLARATIONS_END
