// main.c -- the program is its command table; see harness/command.h.
#include "harness/command.h"

int main(int argc, char **argv)
{
    return command_main(argc, argv);
}
