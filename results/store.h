// store.h -- the HDF5 file of a run, and the only caller of the HDF5 library.
//
// Written by one process from a Result, under a temporary name, fsynced, renamed; readable by
// h5dump, h5py and xarray (h5netcdf) with no plug-in. The layout is described in results/SCHEMA.md.
#pragma once

#include "results/result.h"

// Local. Error 73/74. Overwrites only with force.
bool store_write(const Result *result, const char *path, bool force, Error *error);
// Local. Does it begin as HDF5 files do?
bool store_is_file(const char *path);
// Local. Error 66 (not there), 65 (not ours, damaged).
bool store_read(const char *path, Result *result, Error *error);
// Local. Version of the linked library, for doctor and --version.
void store_version(char *text, size_t bytes);
