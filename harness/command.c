// command.c -- from the command line to a row of the command table, and back out with its exit
// code.
//
// Help, version and commands of one process never start MPI, so they work on a login node where MPI
// does not. Under a launcher the copies with a rank above 0 keep silent then. A wrong command line
// is different: all copies must leave with exit code 2 but only one may speak, and only MPI can
// order that, so it is started for it.
#include "harness/command.h"

#include "harness/doctor.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { COMMANDS_MAX = 64 };

static const Command *find_command(const char *name)
{
    for (const Command *const *row = command_table; *row; row++)
        if (strcmp((*row)->name, name) == 0)
            return *row;
    return NULL;
}

static void print_overview(FILE *file)
{
    int widest = 0;
    for (const Command *const *row = command_table; *row; row++) {
        int length = (int)strlen((*row)->name);
        widest = length > widest ? length : widest;
    }
    fprintf(file, "usage: meshwork COMMAND [options]     (alone, or under mpirun or srun)\n\n");
    for (const Command *const *row = command_table; *row; row++)
        fprintf(file, "  %-*s  %s\n", widest, (*row)->name, (*row)->summary);
    fprintf(file, "\nmeshwork help COMMAND   explains a command and its options\n"
                  "meshwork --version      says what this program was built from\n");
}

// A command's rows, then those of every job. The fields of the latter lie behind its Params.
typedef struct CommandOptions {
    Option *rows; // freed by the caller
    size_t run_offset, bytes;
} CommandOptions;

static int count_rows(const Option *table)
{
    int count = 0;
    while (table[count].name)
        count++;
    return count;
}

static CommandOptions options_of(const Command *command)
{
    const size_t align = _Alignof(max_align_t);
    int own = count_rows(command->options), common = count_rows(run_option_rows);
    CommandOptions joined = {.run_offset = (command->params_bytes + align - 1) / align * align};
    joined.bytes = joined.run_offset + sizeof(RunOptions);
    joined.rows = calloc((size_t)(own + common) + 1, sizeof(Option));
    CHECK(joined.rows, EXIT_CODE_HARDWARE, "free memory", "no memory for the options");
    memcpy(joined.rows, command->options, (size_t)own * sizeof(Option));
    for (int i = 0; command->spmd && i < common; i++) {
        joined.rows[own + i] = run_option_rows[i];
        joined.rows[own + i].offset += joined.run_offset;
    }
    return joined;
}

static void print_command_help(const Command *command)
{
    const char *words = command->usage ? command->usage : "";
    printf("usage: meshwork %s%s%s [options]\n\n%s\n\noptions:\n", command->name,
           words[0] ? " " : "", words, command->summary);
    CommandOptions options = options_of(command);
    option_print_help(options.rows, stdout);
    free(options.rows);
    printf("  -h, --help  this text\n");
    if (command->notes)
        printf("\n%s\n", command->notes);
}

// Ends every copy of the program with exit code 2 after one message.
NORETURN static void refuse(int argc, char **argv, const char *fix, const char *what)
{
    RunLaunch launch = run_launch();
    if (launch.ranks > 1 && launch.starts_mpi)
        run_create(argc, argv, "meshwork", true);
    check_all_failed(__FILE__, __LINE__, EXIT_CODE_USAGE, fix, "%s", what);
}

NORETURN static void refuse_command(int argc, char **argv, const char *name)
{
    const char *candidates[COMMANDS_MAX + 2] = {"help"};
    for (int i = 0; command_table[i] && i < COMMANDS_MAX; i++)
        candidates[i + 1] = command_table[i]->name;
    const char *nearest = option_nearest(name, candidates);
    char fix[256], what[256];
    snprintf(fix, sizeof(fix), "%s%s%smeshwork --help lists all commands",
             nearest ? "did you mean " : "", nearest ? nearest : "", nearest ? "? " : "");
    snprintf(what, sizeof(what), "there is no command '%.100s'", name);
    refuse(argc, argv, fix, what);
}

static bool asks_for_help(int argc, char *const *argv)
{
    if (argc > 0 && strcmp(argv[0], "-h") == 0)
        return true;
    for (int i = 0; i < argc && strcmp(argv[i], "--") != 0; i++)
        if (strcmp(argv[i], "--help") == 0)
            return true;
    return false;
}

// Appends a word as a shell takes it; false when the text has no room for it.
static bool append_word(char *text, size_t bytes, const char *word)
{
    static const char plain[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
                                "_@%+=:,./-";
    size_t at = strlen(text), length = strlen(word);
    if (at + 4 * length + 4 > bytes)
        return false;
    if (at > 0)
        text[at++] = ' ';
    if (length > 0 && strspn(word, plain) == length) {
        memcpy(text + at, word, length + 1);
        return true;
    }
    text[at++] = '\'';
    for (; *word; word++) {
        const char *piece = *word == '\'' ? "'\\''" : (char[]){*word, '\0'};
        memcpy(text + at, piece, strlen(piece));
        at += strlen(piece);
    }
    memcpy(text + at, "'", 2);
    return true;
}

// Half a command line would mislead: what does not fit leaves "unknown".
static void remember_command_line(const Run *run)
{
    CheckContext *context = check_context();
    RunLaunch launch = run_launch();
    bool by_slurm = strncmp(launch.variable, "SLURM", 5) == 0;
    context->reproduce[0] = '\0';
    if (run->ranks > 1)
        snprintf(context->reproduce, sizeof(context->reproduce), "%s -n %d",
                 by_slurm ? "srun --mpi=pmix" : "mpirun", run->ranks);
    for (int i = 0; i < run->argc; i++) {
        if (!append_word(context->reproduce, sizeof(context->reproduce), run->argv[i])) {
            context->reproduce[0] = '\0';
            return;
        }
    }
}

static int run_command(const Command *command, int argc, char **argv)
{
    Run *run = run_create(argc, argv, command->name, command->spmd);
    OptionPositionals positionals;
    Error error = {0};
    CommandOptions options = options_of(command);
    char *params = calloc(1, options.bytes);
    CHECK(params, EXIT_CODE_HARDWARE, "free memory", "no memory for the options");
    option_parse(options.rows, argc - 2, argv + 2, command->positionals_max, params, &positionals,
                 &error);
    run_agree(run, &error);
    free(options.rows);
    remember_command_line(run);
    memcpy(&run->options, params + options.run_offset, sizeof(run->options));
    check_phase("set-up");
    run_start_watch(run);
    int exit_code = command->run(run, params, &positionals);
    if ((fflush(stdout) != 0 || ferror(stdout)) && exit_code == EXIT_CODE_GOOD) {
        check_print(__FILE__, __LINE__, "make room where the output goes, or send it elsewhere",
                    "the result could not be written to standard output");
        exit_code = EXIT_CODE_IO;
    }
    run_destroy(run);
    check_context()->reproduce[0] = '\0';
    free(params);
    return exit_code;
}

int command_main(int argc, char **argv)
{
    bool speaks = run_launch().rank == 0;
    const char *word = argc > 1 ? argv[1] : "";
    bool wants_help = strcmp(word, "--help") == 0 || strcmp(word, "-h") == 0;
    if (argc < 2)
        refuse(argc, argv, "meshwork --help lists all commands", "no command was given");
    if (strcmp(word, "--version") == 0) {
        char version[1024];
        doctor_version(version, sizeof(version));
        if (speaks)
            printf("%s\n", version);
        return EXIT_CODE_GOOD;
    }
    if (wants_help || (strcmp(word, "help") == 0 && argc == 2)) {
        if (speaks)
            print_overview(stdout);
        return EXIT_CODE_GOOD;
    }
    bool help_first = strcmp(word, "help") == 0;
    const char *name = help_first ? argv[2] : word;
    const Command *command = find_command(name);
    if (!command && name[0] == '-')
        refuse(argc, argv, "the command comes first; meshwork --help lists all commands",
               "an option stands where the command should be");
    if (!command)
        refuse_command(argc, argv, name);
    if (help_first || asks_for_help(argc - 2, argv + 2)) {
        if (speaks)
            print_command_help(command);
        return EXIT_CODE_GOOD;
    }
    if (!command->spmd && !speaks)
        return EXIT_CODE_GOOD; // one process does the work
    return run_command(command, argc, argv);
}
