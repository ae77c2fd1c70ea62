// keep_modules.c -- linked into builds with AddressSanitizer: libraries that are closed stay
// loaded.
//
// OpenMPI closes its plug-ins before the process ends. A block that one of them never freed would
// then be reported with frames that have no name, and no rule of lsan.supp could tell it from a
// leak of ours. With the plug-ins still mapped the frames are named, their leaks are suppressed by
// library, and ours are seen.
#include <dlfcn.h>

int dlclose(void *library)
{
    (void)library;
    return 0;
}
