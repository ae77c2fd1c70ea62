// Result files opened by h5py and xarray. MESHWORK_ORACLE_PYTHON names a python that has both (and
// h5netcdf).
// labels: oracle
#include "tests/results_folder.h"

#include <sys/wait.h>

#include "results/store.h"

enum { ROUNDS = 3, COMMAND_BYTES = 1200 };

static const char *python(void)
{
    return getenv("MESHWORK_ORACLE_PYTHON");
}

// JSON has no infinity, python's float() reads "inf": results with infinite errors pass through
// unchanged.
static void test_oracle(void **state)
{
    Folder *folder = *state;
    char command[COMMAND_BYTES];
    const char *golden = getenv("MESHWORK_GOLDEN");
    snprintf(command, sizeof command, "'%s' '%s/../oracle_results.py' '%s' '%s'", python(),
             golden ? golden : "tests/golden", folder->file, folder->out);
    for (int round = 0; round < ROUNDS; round++) {
        Result result = sample_result(folder->sample, 4, 5);
        Error error = {0};
        sample_push_measurement(folder->sample, &result, 2, 3);
        if (!store_write(&result, folder->file, true, &error))
            fail_msg("%s", error.what);
        show_into(folder->out, &result, true);
        assert_int_equal(system(command), 0);
        // One sample that is another by its last bit: the oracle must see it.
        double *seconds = (double *)(uintptr_t)result.measurements[4].spans[0].seconds;
        seconds[5] = isnan(seconds[5]) ? 1 : nextafter(seconds[5], 0);
        seconds[5] += seconds[5] == 0;
        show_into(folder->out, &result, true);
        assert_int_equal(WEXITSTATUS(system(command)), 1);
        result_destroy(&result);
    }
}

int main(void)
{
    Sample sample = sample_create();
    const struct CMUnitTest tests[] = {FOLDER_TEST(test_oracle, &sample)};
    if (!python()) {
        printf("skipped: MESHWORK_ORACLE_PYTHON names no python\n");
        return EXIT_CODE_SKIPPED;
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
