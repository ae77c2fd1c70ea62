#!/usr/bin/env bash
# program_checkpoint.sh with many more moments of kill -9.
# labels: slow
# timeout: 3600
KILLS=${KILLS:-100} exec bash "$(dirname "${BASH_SOURCE[0]}")/program_checkpoint.sh" "$@"
