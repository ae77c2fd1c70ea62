#!/usr/bin/env bash
# The kill loop of program_kill.sh at 150 random moments.
# labels: slow
# timeout: 1500
MOMENTS=${MOMENTS:-150} exec bash "$(dirname "${BASH_SOURCE[0]}")/program_kill.sh" "$@"
