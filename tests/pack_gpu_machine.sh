#!/usr/bin/env bash
# pack_gpu_machine.sh -- takes the Debian packages that a machine without a registry lacks along as one archive.
#
#   tests/pack_gpu_machine.sh pack [FOLDER]     here: downloads the packages into FOLDER/packages.tar.gz (.carry)
#   tests/pack_gpu_machine.sh unpack [FOLDER]   there, as root: unpacks it over / without replacing a single file
#
# The GPU machine has compilers, CMake, ninja, OpenMPI and HDF5 of its own, newer than ours; what it has it keeps
# (--skip-old-files), and its merged /lib stays a link (--keep-directory-symlink). `./run` unpacks by itself when it
# finds the archive. Exit codes: 0 good, 2 usage, 69 no registry to download from, 66 no archive to unpack.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

packages=(
    libjansson4 libjansson-dev
    libssl3 libssl-dev
    libpcre2-8-0 libpcre2-16-0 libpcre2-32-0 libpcre2-posix3 libpcre2-dev
    libcmocka0 libcmocka-dev
    libpapi7.0 libpapi-dev libpfm4
)

pack() {
    local folder=$1 work
    mkdir -p "$folder"
    folder=$(cd "$folder" && pwd)
    work=$(mktemp -d)
    # shellcheck disable=SC2064 # the folder of now
    trap "rm -rf '$work'" EXIT
    mkdir "$work/downloads" "$work/root"
    # apt drops its rights to a user of its own, who must be able to write here.
    chmod 755 "$work" && chmod 777 "$work/downloads"
    if ! (cd "$work/downloads" && apt-get download -q "${packages[@]}") >&2; then
        echo "pack: error: apt-get download failed for: ${packages[*]}" >&2
        echo "fix: run it where a Debian 12 registry can be reached, after apt-get update" >&2
        exit 69
    fi
    local package
    for package in "$work"/downloads/*.deb; do dpkg-deb -x "$package" "$work/root"; done
    rm -rf "$work/root/usr/share"
    # Named folders, not ".": the mode of / over there is none of our business.
    (cd "$work/root" && tar --owner=0 --group=0 -czf "$work/packages.tar.gz" -- *)
    mv "$work/packages.tar.gz" "$folder/packages.tar.gz"
    echo "packed ${#packages[@]} packages: $folder/packages.tar.gz, $(stat -c %s "$folder/packages.tar.gz") bytes"
}

unpack() {
    local archive=$1/packages.tar.gz root=${MESHWORK_UNPACK_ROOT:-/}
    if ! [ -f "$archive" ]; then
        echo "unpack: error: no $archive" >&2
        echo "fix: run 'tests/pack_gpu_machine.sh pack' where there is a registry and bring the file here" >&2
        exit 66
    fi
    tar --skip-old-files --keep-directory-symlink -C "$root" -xzf "$archive"
    if [ "$root" = / ]; then ldconfig; fi
    echo "unpacked $archive"
}

case ${1:-} in
pack) pack "${2:-.carry}" ;;
unpack) unpack "${2:-.carry}" ;;
*)
    echo "pack_gpu_machine: error: say 'pack' or 'unpack', not '${1:-}'" >&2
    exit 2
    ;;
esac
