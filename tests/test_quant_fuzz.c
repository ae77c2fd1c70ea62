// Every parser of files from strangers, on inputs that are nearly right: each seed and each input
// that once crashed one (tests/golden/fuzz), cut at every byte, and changed at random places in
// many ways. tests/fuzz.sh does the same for hours, with libFuzzer.
#include <dirent.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "tests/fuzz_targets.h"

enum { MUTATIONS = 400, CUTS_MAX = 4096, INPUT_BYTES_MAX = 1 << 16, PATH_BYTES = 1024 };

static uint64_t random_state = 1;

static uint32_t random_below(uint32_t limit)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return limit > 0 ? (uint32_t)(random_state >> 33) % limit : 0;
}

// A copy of exactly that size, so that a sanitizer sees every byte read beyond it.
static void try_copy(const FuzzTarget *target, const uint8_t *data, size_t bytes)
{
    uint8_t *copy = malloc(bytes > 0 ? bytes : 1);
    assert_non_null(copy);
    memcpy(copy, data, bytes);
    target->run(copy, bytes);
    free(copy);
}

static size_t mutate(uint8_t *data, size_t bytes)
{
    static const uint8_t odd[] = {0x00, 0xFF, 0x7F, 0x80, '0', '9', '"', '{', '}', '[', ',', '\\'};
    for (uint32_t changes = 1 + random_below(4); changes > 0 && bytes > 8; changes--) {
        uint32_t at = random_below((uint32_t)bytes), kind = random_below(5);
        if (kind == 0)
            data[at] ^= (uint8_t)(1u << random_below(8));
        else if (kind == 1)
            data[at] = odd[random_below(sizeof(odd))];
        else if (kind == 2) // a number of eight bytes
            memset(data + (at < bytes - 8 ? at : bytes - 8), random_below(2) ? 0xFF : 0, 8);
        else if (kind == 3) { // bytes fall out
            uint32_t count = 1 + random_below(16);
            count = count > bytes - at ? (uint32_t)(bytes - at) : count;
            memmove(data + at, data + at + count, bytes - at - count);
            bytes -= count;
        } else { // a piece stands somewhere else too
            uint32_t from = random_below((uint32_t)bytes), count = 1 + random_below(32);
            uint32_t most = (uint32_t)bytes - (from > at ? from : at);
            memmove(data + at, data + from, count < most ? count : most);
        }
    }
    return bytes;
}

static void try_seed(const FuzzTarget *target, const uint8_t *data, size_t bytes)
{
    uint8_t *copy = malloc(bytes + 1);
    assert_non_null(copy);
    try_copy(target, data, bytes);
    for (size_t cut = 0; cut < bytes && bytes <= CUTS_MAX; cut++)
        try_copy(target, data, cut);
    for (int i = 0; i < MUTATIONS; i++) {
        memcpy(copy, data, bytes);
        try_copy(target, copy, mutate(copy, bytes));
    }
    free(copy);
}

static int try_target(const FuzzTarget *target)
{
    char path[PATH_BYTES], file[PATH_BYTES * 2];
    const char *golden = getenv("MESHWORK_GOLDEN");
    snprintf(path, sizeof(path), "%s/fuzz/%s", golden ? golden : "tests/golden", target->name);
    DIR *directory = opendir(path);
    if (!directory)
        fail_msg("no folder %s", path);
    int seeds = 0;
    for (struct dirent *entry; (entry = readdir(directory));) {
        uint64_t bytes;
        Error error = {0};
        if (entry->d_name[0] == '.')
            continue;
        snprintf(file, sizeof(file), "%s/%s", path, entry->d_name);
        char *data = file_read(file, INPUT_BYTES_MAX, &bytes, &error);
        if (!data)
            fail_msg("%s", error.what);
        try_seed(target, (const uint8_t *)data, bytes);
        free(data);
        seeds++;
    }
    closedir(directory);
    return seeds;
}

static void every_target(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT_OF(fuzz_targets); i++)
        if (try_target(&fuzz_targets[i]) == 0)
            fail_msg("target %s has no seeds", fuzz_targets[i].name);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(every_target)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
