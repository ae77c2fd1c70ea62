// Expert parallelism on GPUs: the tests of parallel_ep_tests.h over every transport, whole steps as
// one CUDA graph that is replayed with different routing, with no wait on the host between.
// ranks: 2
// labels: gpu2
#include "tests/parallel_ep_tests.h"

int main(int argc, char **argv)
{
    TestJob job = test_job_begin(argc, argv, DEVICE_CUDA);
    EpSetting setting = ep_setting(&job);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_prestate(test_one_rank_stands_for_many, &setting),
        cmocka_unit_test_prestate(test_choice_of_transport, &setting),
        cmocka_unit_test_prestate(test_world_equals_one, &setting),
        cmocka_unit_test_prestate(test_window, &setting),
        cmocka_unit_test_prestate(test_ipc, &setting),
        cmocka_unit_test_prestate(test_nccl, &setting),
        cmocka_unit_test_prestate(test_enqueued_steps, &setting),
    };
    return test_job_end(&job, cmocka_run_group_tests(tests, NULL, NULL));
}
