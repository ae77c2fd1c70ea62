#!/usr/bin/env bash
# Folders depend one way, and each library has one wall around it.
# $1: the source folder.
# builds: release
#
# A file may include headers of its own folder and of folders to its left in `order`; tests may include all. Headers of
# a library appear only where `walls` says. Before it judges the tree, the check must refuse small wrong trees.
set -euo pipefail

order=(harness results quant kernels parallel experiments)

# Header, then an extended regular expression of the files that may include it.
walls=(
    "jansson\.h      ^harness/json[a-z_]*\.c$"
    "pcre2\.h        ^quant/pattern\.c$"
    "openssl/.*      ^quant/digest\.c$"
    "hdf5(_hl)?\.h   ^results/store[a-z_]*\.(c|h)$|^tests/"
    "nccl[a-z_]*\.h  ^parallel/|^tests/"
    "mpi\.h          ^harness/(run|check|doctor)[a-z_]*\.(c|h)$|^parallel/|^experiments/doctor\.c$|^tests/"
    "papi\.h         ^harness/"
    "(cgraph|gvc)\.h ^results/graph/layout_graphviz\.c$"
    "zlib\.h         ^results/(store|journal|lines)[a-z_]*\.c$|^results/graph/source\.c$|^quant/digest\.c$"
    "cuda[a-z_]*\.h  _(cuda|nccl|cublas)\.(c|h)$|\.cuh?$"
    "nvml\.h         _cuda\.c$"
    "cublas[A-Za-z_]*\.h _(cuda|cublas)\.(c|h)$|\.cu$"
)

top_level_allowed='^(\.ci|\.git|\.carry|build|build-.*|harness|results|quant|kernels|parallel|experiments|tests|slurm)$'

place_of() { # index of a folder in `order`; tests stand to the right of all
    local index
    for index in "${!order[@]}"; do
        if [ "${order[$index]}" = "$1" ]; then echo "$index" && return; fi
    done
    echo "${#order[@]}"
}

# Prints one line per broken rule in the tree at $1.
broken_rules() {
    local folder file line header row pattern allowed
    cd "$1"
    for folder in */ .*/; do
        folder=${folder%/}
        case $folder in . | ..) continue ;; esac
        [[ $folder =~ $top_level_allowed ]] || echo "$folder/: no such top-level folder in the design"
    done
    while IFS=: read -r file line header; do
        header=$(sed -E 's/^ *# *include *[<"]([^>"]*)[>"].*/\1/' <<<"$header")
        local from=${file%%/*} to=${header%%/*}
        if [[ $header == */* ]] && [ -d "$to" ] && [ "$(place_of "$to")" -gt "$(place_of "$from")" ]; then
            echo "$file:$line: $from/ must not include $header: $to/ stands to its right"
        fi
        for row in "${walls[@]}"; do
            read -r pattern allowed <<<"$row"
            if [[ $header =~ ^(.*/)?$pattern$ ]] && ! [[ $file =~ $allowed ]]; then
                echo "$file:$line: $header is not included here, only in: $allowed"
            fi
        done
    done < <(grep -rnE '^ *# *include' --include='*.c' --include='*.h' --include='*.cu' --include='*.cuh' \
        "${order[@]}" tests 2>/dev/null)
}

# A tree with one file ($1, content $2) must be refused.
must_refuse() {
    local tree
    tree=$(mktemp -d)
    mkdir -p "$tree"/{harness,results,quant,kernels,parallel,experiments,tests} "$tree/$(dirname "$1")"
    echo "$2" >"$tree/$1"
    if [ -z "$(broken_rules "$tree")" ]; then
        echo "the check itself is broken: it accepts '$2' in $1"
        exit 1
    fi
    rm -rf "$tree"
}
must_refuse harness/a.c '#include "results/result.h"'
must_refuse kernels/a.cu '  # include "parallel/comm.h"'
must_refuse experiments/model/a.c '#include <nccl.h>'
must_refuse quant/a.c '#include <jansson.h>'
must_refuse results/graph/page.c '#include <graphviz/gvc.h>'
must_refuse harness/a.c '#include <cuda_runtime.h>'
must_refuse utils/a.c '#include "harness/base.h"'

broken=$(broken_rules "${1:-.}")
if [ -n "$broken" ]; then
    echo "$broken"
    exit 1
fi
echo "folders and walls hold"
