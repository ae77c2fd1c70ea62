// keep_modules.c -- linked into builds with AddressSanitizer, so that LeakSanitizer can live with
// OpenMPI.
//
// OpenMPI closes its plug-ins before the process ends. A block that one of them never freed would
// then be reported with frames that have no name, and no rule of lsan.supp could tell it from a
// leak of ours. With the plug-ins still mapped the frames are named, their leaks are suppressed by
// library, and ours are seen.
//
// A process that started MPI without a launcher has helper threads of PMIx in it that
// LeakSanitizer's tracer falls over ("Tracer caught signal 11"): no leak check there; the same code
// runs under mpirun.
#include <dlfcn.h>
#include <mpi.h>
#include <stdlib.h>

int __lsan_is_turned_off(void);

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
