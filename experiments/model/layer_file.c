// Options of one command handed on to another.
#include "experiments/model/layer_file.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { WORDS_MAX = 32, WORD_BYTES = 1200 };

// What a layer file leaves open, and dp2ep takes.
static const char handed_on[] = " mesh experts_on load save device align exact check seed samples "
                                "max_noise timeout output force json ";

static bool is_handed_on(const char *name)
{
    char word[64];
    snprintf(word, sizeof word, " %s ", name);
    return strstr(handed_on, word) != NULL;
}

static const Command *find_dp2ep(void)
{
    for (const Command *const *command = command_table; *command; command++)
        if (strcmp((*command)->name, "dp2ep") == 0)
            return *command;
    CHECK_RULE(false && "there is a command dp2ep");
    return NULL;
}

// The option as a user would have typed it for dp2ep.
static void write_word(const Option *option, const char *value, char *word)
{
    if (option->kind == OPTION_SWITCH)
        snprintf(word, WORD_BYTES, "--%s%s", strcmp(value, "yes") == 0 ? "" : "no-", option->name);
    else
        snprintf(word, WORD_BYTES, "--%s=%s", option->name, value);
}

int layer_file_run(Run *run, const Option *table, const void *params)
{
    const Command *dp2ep = find_dp2ep();
    char(*word)[WORD_BYTES] = calloc(WORDS_MAX, WORD_BYTES);
    char *words[WORDS_MAX];
    void *theirs = calloc(1, dp2ep->params_bytes);
    CHECK(word && theirs, EXIT_CODE_HARDWARE, "free some memory", "no memory for options");
    int count = 0;
    Error error = {0};
    for (const Option *option = table; option->name; option++) {
        char value[1024];
        option_format(option, params, value, sizeof value);
        bool given = option->fallback ? strcmp(value, option->fallback) != 0 : value[0] != '\0';
        if (!given)
            continue;
        if (!is_handed_on(option->name)) {
            error_set(&error, EXIT_CODE_USAGE, "drop the option, or drop --load",
                      "--%s %.100s with --load: the file decides it", option->name, value);
            break;
        }
        CHECK_RULE(count < WORDS_MAX);
        write_word(option, value, word[count]);
        words[count] = word[count];
        count++;
    }
    run_agree(run, &error);
    OptionPositionals positionals;
    option_parse(dp2ep->options, count, words, 0, theirs, &positionals, &error);
    run_agree(run, &error);
    int code = dp2ep->run(run, theirs, &positionals);
    free(word);
    free(theirs);
    return code;
}
