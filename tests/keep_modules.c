// keep_modules.c -- linked into builds with AddressSanitizer, so that leaks of MPI can be told from
// ours.
//
// OpenMPI closes its plug-ins before the process ends. A block that one of them never freed would
// then be reported with frames that have no name, and no rule of lsan.supp could match it:
// libraries that are closed stay loaded. And libc, built without frame pointers, loses the caller
// of asprintf: these are compiled with them. With both, a leak of MPI names its library, and ours
// are seen.
//
// A process that started MPI without a launcher has helper threads of PMIx in it that
// LeakSanitizer's tracer falls over ("Tracer caught signal 11"): no leak check there; the same code
// runs under mpirun.
#include <dlfcn.h>
#include <mpi.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

int __lsan_is_turned_off(void);
int __vasprintf_chk(char **text, int flag, const char *format, va_list arguments);
int __asprintf_chk(char **text, int flag, const char *format, ...);

int dlclose(void *library)
{
    (void)library;
    return 0;
}

int __lsan_is_turned_off(void)
{
    int started = 0;
    MPI_Initialized(&started);
    return started && !getenv("OMPI_COMM_WORLD_SIZE");
}

int vasprintf(char **text, const char *format, va_list arguments)
{
    va_list again;
    va_copy(again, arguments);
    int length = vsnprintf(NULL, 0, format, arguments);
    *text = length < 0 ? NULL : malloc((size_t)length + 1);
    if (*text)
        length = vsnprintf(*text, (size_t)length + 1, format, again);
    va_end(again);
    return *text ? length : -1;
}

int asprintf(char **text, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    int length = vasprintf(text, format, arguments);
    va_end(arguments);
    return length;
}

// What calls to the two become in libraries that were built with _FORTIFY_SOURCE.
int __vasprintf_chk(char **text, int flag, const char *format, va_list arguments)
{
    (void)flag;
    return vasprintf(text, format, arguments);
}

int __asprintf_chk(char **text, int flag, const char *format, ...)
{
    (void)flag;
    va_list arguments;
    va_start(arguments, format);
    int length = vasprintf(text, format, arguments);
    va_end(arguments);
    return length;
}
