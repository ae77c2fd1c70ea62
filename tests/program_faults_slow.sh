#!/usr/bin/env bash
# Every fault of program_faults.sh in every phase, on 2, 4 and 8 ranks.
# labels: slow
# timeout: 2400
FAULTS=all exec bash "$(dirname "${BASH_SOURCE[0]}")/program_faults.sh" "$@"
