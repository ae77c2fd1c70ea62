// Expert parallelism over MPI: dispatch, return and sum, forward and backward, bit for bit against
// sums made from the definition on one process, which are the same for any number of ranks; bytes
// on the wire against a hand count. The tests are in parallel_ep_tests.h.
// ranks: 1 2 3 4 8
#include "tests/parallel_ep_tests.h"

int main(int argc, char **argv)
{
    TestJob job = test_job_begin(argc, argv, DEVICE_CPU);
    EpSetting setting = ep_setting(&job);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_prestate(test_mpi, &setting),
        cmocka_unit_test_prestate(test_one_rank_stands_for_many, &setting),
        cmocka_unit_test_prestate(test_world_equals_one, &setting),
        cmocka_unit_test_prestate(test_choice_of_transport, &setting),
        cmocka_unit_test_prestate(test_enqueued_steps, &setting),
    };
    return test_job_end(&job, cmocka_run_group_tests(tests, NULL, NULL));
}
