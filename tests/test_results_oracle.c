// Result files opened by h5py and xarray. MESHWORK_ORACLE_PYTHON names a python that has both (and
// h5netcdf).
// labels: oracle
#include "tests/results_sample.h"

#include <sys/wait.h>

#include "harness/file.h"
#include "results/store.h"

enum { ROUNDS = 3, PATH_BYTES = 256, COMMAND_BYTES = 1200 };

static const char *python(void)
{
    return getenv("MESHWORK_ORACLE_PYTHON");
}

static void show_into(const char *path, const Result *result)
{
    fflush(stdout);
    int saved = dup(STDOUT_FILENO);
    FILE *file = fopen(path, "w");
    dup2(fileno(file), STDOUT_FILENO);
    result_show(result, true);
    fflush(stdout);
    dup2(saved, STDOUT_FILENO);
    close(saved);
    fclose(file);
}

// JSON has no infinity, python's float() reads "inf": results with infinite errors pass through
// unchanged.
static void test_oracle(void **state)
{
    Sample *sample = *state;
    char folder[PATH_BYTES], file[PATH_BYTES + 16], shown[PATH_BYTES + 16], command[COMMAND_BYTES];
    const char *golden = getenv("MESHWORK_GOLDEN");
    sample_folder_create(folder, sizeof folder);
    snprintf(file, sizeof file, "%s/r.h5", folder);
    snprintf(shown, sizeof shown, "%s/shown.json", folder);
    snprintf(command, sizeof command, "'%s' '%s/../oracle_results.py' '%s' '%s'", python(),
             golden ? golden : "tests/golden", file, shown);
    for (int round = 0; round < ROUNDS; round++) {
        Result result = sample_result(sample, 4, 5);
        Error error = {0};
        sample_push_measurement(sample, &result, 2, 3);
        if (!store_write(&result, file, true, &error))
            fail_msg("%s", error.what);
        show_into(shown, &result);
        assert_int_equal(system(command), 0);
        // One sample that is another by its last bit: the oracle must see it.
        double *seconds = (double *)(uintptr_t)result.measurements[4].spans[0].seconds;
        seconds[5] = isnan(seconds[5]) ? 1 : nextafter(seconds[5], 0);
        seconds[5] += seconds[5] == 0;
        show_into(shown, &result);
        assert_int_equal(WEXITSTATUS(system(command)), 1);
        result_destroy(&result);
    }
    sample_folder_destroy(folder);
}

int main(void)
{
    Sample sample = sample_create();
    const struct CMUnitTest tests[] = {cmocka_unit_test_prestate(test_oracle, &sample)};
    if (!python()) {
        printf("skipped: MESHWORK_ORACLE_PYTHON names no python\n");
        return EXIT_CODE_SKIPPED;
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
