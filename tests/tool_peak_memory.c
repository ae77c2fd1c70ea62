// tool_peak_memory FILE COMMAND [WORD...] -- runs the command and writes to FILE the largest
// resident set, in bytes, that any single process of it reached: of a job under mpirun, the largest
// rank's. Ends with the command's exit code (128 + the signal that ended it; 127: not found). A
// limit on addresses (ulimit -v) would count what libraries reserve and never touch.
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

int main(int argument_count, char **arguments)
{
    if (argument_count < 3) {
        fprintf(stderr, "usage: %s FILE COMMAND [WORD...]\n", arguments[0]);
        return 2;
    }
    pid_t child = fork();
    if (child < 0) {
        perror("fork");
        return EXIT_FAILURE;
    }
    if (child == 0) {
        execvp(arguments[2], arguments + 2);
        perror(arguments[2]);
        _exit(127);
    }
    int status = 0;
    struct rusage usage;
    if (waitpid(child, &status, 0) != child || getrusage(RUSAGE_CHILDREN, &usage) != 0) {
        perror("wait");
        return EXIT_FAILURE;
    }
    FILE *file = fopen(arguments[1], "w");
    if (file == NULL || fprintf(file, "%lld\n", (long long)usage.ru_maxrss * 1024) < 0 ||
        fclose(file) != 0) {
        perror(arguments[1]);
        return EXIT_FAILURE;
    }
    return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}
