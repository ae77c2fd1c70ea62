// The doctor: its table and JSON, its exit code, and probes that notice what was put in their way.
#include "harness/doctor.h"
#include "tests/capture.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/stat.h>

#include <cmocka.h>

static void look_good(DoctorLine *line)
{
    snprintf(line->found, sizeof(line->found), "version 7");
}

static void look_absent(DoctorLine *line)
{
    *line = (DoctorLine){DOCTOR_ABSENT, "none \"here\"", "costs time: apt install it"};
}

static void look_warning(DoctorLine *line)
{
    *line = (DoctorLine){DOCTOR_WARNING, "small", "enlarge it"};
}

static void look_broken(DoctorLine *line)
{
    *line = (DoctorLine){DOCTOR_BROKEN, "bent", "straighten it"};
}

static const DoctorProbe healthy[] = {
    {"one", look_good}, {"two", look_absent}, {"three", look_warning}, {NULL, NULL}};
static const DoctorProbe ill[] = {{"four", look_broken}, {NULL, NULL}};

typedef struct Visit {
    const DoctorProbe *tables[2];
    int count;
    bool json;
} Visit;

static void visit(void *context)
{
    const Visit *how = context;
    int exit_code = doctor_report(how->tables, how->count, how->json);
    fflush(stdout);
    _exit(exit_code);
}

static void the_table_says_what_and_what_it_costs(void **state)
{
    (void)state;
    Visit how = {{healthy, ill}, 1, false};
    Captured report = capture(visit, &how);
    assert_int_equal(report.exit_code, 0); // absent things are no fault
    ASSERT_CONTAINS(report.text, "meshwork ");
    ASSERT_CONTAINS(report.text, "good     one       version 7\n");
    ASSERT_CONTAINS(report.text, "absent   two       none \"here\"\n");
    ASSERT_CONTAINS(report.text, "costs time: apt install it\n");
    ASSERT_CONTAINS(report.text, "warning  three     small\n");
    how.count = 2;
    report = capture(visit, &how);
    assert_int_equal(report.exit_code, EXIT_CODE_HARDWARE);
    ASSERT_CONTAINS(report.text, "broken   four      bent\n");
    ASSERT_CONTAINS(report.text, "straighten it\n");
}

static void json_says_the_same(void **state)
{
    (void)state;
    Visit how = {{healthy, ill}, 2, true};
    Captured report = capture(visit, &how);
    assert_int_equal(report.exit_code, EXIT_CODE_HARDWARE);
    Error error = {0};
    Json *json = json_parse(report.text, strlen(report.text), &error);
    assert_string_equal(error.what, "");
    assert_string_equal(json_text_of(json_find(json, "schema_name")), "meshwork doctor");
    assert_string_equal(json_text_of(json_find(json, "schema_version")), "1.0.0");
    assert_int_equal(json_integer_of(json_find(json, "broken")), 1);
    const Json *probes = json_find(json, "probes");
    static const char *const expected[][4] = {
        {"one", "good", "version 7", ""},
        {"two", "absent", "none \"here\"", "costs time: apt install it"},
        {"three", "warning", "small", "enlarge it"},
        {"four", "broken", "bent", "straighten it"},
    };
    static const char *const keys[] = {"name", "verdict", "found", "cost"};
    assert_int_equal(json_count(probes), COUNT_OF(expected));
    for (size_t i = 0; i < COUNT_OF(expected); i++)
        for (size_t k = 0; k < COUNT_OF(keys); k++)
            assert_string_equal(json_text_of(json_find(json_at(probes, i), keys[k])),
                                expected[i][k]);
    json_destroy(json);
}

static void every_real_probe_finds_words(void **state)
{
    (void)state;
    int count = 0;
    for (const DoctorProbe *probe = doctor_harness_probes; probe->name; probe++, count++) {
        DoctorLine line = {.verdict = DOCTOR_GOOD};
        probe->look(&line);
        print_message("%s: %d, %s; %s\n", probe->name, (int)line.verdict, line.found, line.cost);
        assert_true(line.found[0] != '\0');
        if ((line.verdict == DOCTOR_GOOD) != (line.cost[0] == '\0'))
            fail_msg("%s: verdict %d with cost '%s'", probe->name, (int)line.verdict, line.cost);
        for (const DoctorProbe *other = doctor_harness_probes; other != probe; other++)
            assert_string_not_equal(other->name, probe->name);
    }
    assert_in_range(count, 10, 30);
}

static DoctorLine look(const char *name)
{
    DoctorLine line = {.verdict = DOCTOR_GOOD};
    const DoctorProbe *probe = doctor_harness_probes;
    while (probe->name && strcmp(probe->name, name) != 0)
        probe++;
    assert_non_null(probe->name);
    probe->look(&line);
    return line;
}

// A PATH of one folder with one program of ours in it, and the real one behind it if `real`.
static void with_program(const char *folder, const char *name, const char *answer, bool real)
{
    char path[256], search[4096];
    const char *old = getenv("PATH");
    snprintf(path, sizeof(path), "%s/%s", folder, name);
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    fprintf(file, "#!/bin/sh\necho '%s'\n", answer);
    fclose(file);
    assert_int_equal(chmod(path, 0755), 0);
    snprintf(search, sizeof(search), "%s%s%s", folder, real ? ":" : "", real ? old : "");
    assert_int_equal(setenv("PATH", search, 1), 0);
}

static void programs_on_the_path_are_asked(void **state)
{
    (void)state;
    char folder[] = "/tmp/meshwork_doctor_XXXXXX", command[96];
    assert_non_null(mkdtemp(folder));
    char *path = strdup(getenv("PATH"));

    with_program(folder, "srun", "MPI plugin types are... none pmi2 pmix_v4", true);
    DoctorLine line = look("slurm");
    assert_int_equal(line.verdict, DOCTOR_GOOD);
    ASSERT_CONTAINS(line.found, "pmix_v4");
    setenv("PATH", path, 1);
    with_program(folder, "srun", "MPI plugin types are... none pmi2", true);
    line = look("slurm");
    assert_int_equal(line.verdict, DOCTOR_WARNING);
    ASSERT_CONTAINS(line.cost, "no pmix");

    setenv("PATH", path, 1);
    with_program(folder, "mpirun", "HYDRA build details: Version: 99.98.97", true);
    line = look("mpi");
    assert_int_equal(line.verdict, DOCTOR_WARNING);
    ASSERT_CONTAINS(line.cost, "mpirun is of another MPI (HYDRA build details: Version: 99.98.97)");

    setenv("PATH", "/nowhere", 1);
    assert_int_equal(look("slurm").verdict, DOCTOR_ABSENT);
    line = look("mpi");
    assert_int_equal(line.verdict, DOCTOR_ABSENT);
    ASSERT_CONTAINS(line.cost, "apt install openmpi-bin");
    unsetenv("PATH");
    assert_int_equal(look("slurm").verdict, DOCTOR_ABSENT);

    setenv("PATH", path, 1);
    free(path);
    snprintf(command, sizeof(command), "rm -rf %s", folder);
    assert_int_equal(system(command), 0);
}

static void the_launcher_and_its_conflicts_are_shown(void **state)
{
    (void)state;
    setenv("PMI_RANK", "1", 1);
    setenv("PMI_SIZE", "4", 1);
    DoctorLine line = look("launcher");
    ASSERT_CONTAINS(line.found, "rank 1 of 4");
    setenv("WORLD_SIZE", "8", 1);
    setenv("RANK", "1", 1);
    line = look("launcher");
    assert_int_equal(line.verdict, DOCTOR_WARNING);
    ASSERT_CONTAINS(line.cost, "PMI_SIZE=4, but WORLD_SIZE=8");
    static const char *const names[] = {"PMI_RANK", "PMI_SIZE", "RANK", "WORLD_SIZE"};
    for (size_t i = 0; i < COUNT_OF(names); i++)
        unsetenv(names[i]);
    assert_int_equal(look("launcher").verdict, DOCTOR_GOOD);
}

static void the_version_is_one_line(void **state)
{
    (void)state;
    char text[1024] = "", tight[12];
    doctor_version(text, sizeof(text));
    assert_int_equal(strncmp(text, "meshwork 0.", 11), 0);
    ASSERT_CONTAINS(text, "MPI");
    ASSERT_CONTAINS(text, "PAPI");
    assert_null(strchr(text, '\n'));
    doctor_version(tight, sizeof(tight));
    assert_string_equal(tight, "meshwork 0.");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_table_says_what_and_what_it_costs),
        cmocka_unit_test(json_says_the_same),
        cmocka_unit_test(every_real_probe_finds_words),
        cmocka_unit_test(programs_on_the_path_are_asked),
        cmocka_unit_test(the_launcher_and_its_conflicts_are_shown),
        cmocka_unit_test(the_version_is_one_line),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
