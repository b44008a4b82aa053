# Words, places and small helpers that every script here shares. Sourced, never run.
# shellcheck shell=bash

shopt -s inherit_errexit # `set -e` holds in $(…) too

CHECKOUT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
readonly CHECKOUT

# say WORDS…: one line of progress, on standard error so that standard output stays a result.
say() { printf '%s\n' "$*" >&2; }

# die MESSAGE [HINT]: what failed and what to do about it; exit status 1.
die() {
    printf '%s: error: %s\n' "${0##*/}" "$1" >&2
    [[ -z ${2-} ]] || printf '%s: hint: %s\n' "${0##*/}" "$2" >&2
    exit 1
}

# usage_error MESSAGE: the command line is wrong; exit status 2, as design.md has it.
usage_error() {
    printf '%s: %s\n' "${0##*/}" "$1" >&2
    exit 2
}

is_root() { [[ $EUID -eq 0 ]]; }

# home_directory: $HOME, or what the account database says where the environment has none.
home_directory() {
    if [[ -n ${HOME-} ]]; then
        printf '%s\n' "$HOME"
    else
        getent passwd "$EUID" | cut -d: -f6
    fi
}

# The place for what is slow to make (root file systems). Outside the checkout, so that a fresh
# clone finds it.
MAID_CACHE=${MAID_CACHE:-$(home_directory)/.cache/maid}
export MAID_CACHE

# os_release KEY: a value of this machine's /etc/os-release; empty where there is none.
os_release() { (
    # shellcheck source=/dev/null
    . /etc/os-release 2>/dev/null || true
    printf '%s\n' "${!1-}"
); }

# debian_release: the number of this machine's Debian ("12", "13"); empty on anything else.
debian_release() { [[ $(os_release ID) != debian ]] || os_release VERSION_ID; }

# digest: the first 12 hexadecimal digits of the SHA-256 of standard input.
digest() { sha256sum | cut -c1-12; }

# seconds_since START: START as $EPOCHREALTIME was; prints seconds with one decimal.
seconds_since() {
    local now=${EPOCHREALTIME/[.,]/} start=${1/[.,]/}
    local tenths=$(((now - start) / 100000))
    printf '%d.%d\n' $((tenths / 10)) $((tenths % 10))
}

# quietly LOG CMD…: run the program CMD with its output in the file LOG; where it fails, show the
# end of LOG and fail with it.
quietly() {
    local log=$1 status=0
    shift
    "$@" </dev/null >"$log" 2>&1 || status=$?
    if ((status != 0)); then
        say "failed with status $status: $*"
        tail -n 40 "$log" | sed 's/^/    /' >&2
    fi
    return "$status"
}

# beside CMD…: start CMD in the background, in a process group of its own: a whole job can be ended.
# `set -e` stays in force within CMD. Its output goes where this program's goes.
jobs_beside=()
beside() {
    set -m
    "$@" </dev/null &
    jobs_beside+=("$!")
    set +m
}

# all_beside: wait for all jobs. The first that fails ends the others, and this program with its
# status.
all_beside() {
    local pid job status running
    while ((${#jobs_beside[@]} > 0)); do
        status=0
        wait -n -p pid "${jobs_beside[@]}" || status=$?
        running=()
        for job in "${jobs_beside[@]}"; do [[ $job == "$pid" ]] || running+=("$job"); done
        jobs_beside=("${running[@]}")
        ((status == 0)) || exit "$status" # end_beside is the trap
    done
}

# end_beside: end the jobs that still run, and wait until they have cleaned up. For a trap on EXIT.
end_beside() {
    local job
    for job in "${jobs_beside[@]}"; do kill -- "-$job" 2>/dev/null || true; done
    for job in "${jobs_beside[@]}"; do wait "$job" 2>/dev/null || true; done
    jobs_beside=()
}

# mounts_below DIR: the mount points below DIR, the innermost first (field 5 of a line of
# mountinfo).
mounts_below() { cut -d ' ' -f 5 /proc/self/mountinfo | grep -F "$1/" | tac || true; }

# unmount_below DIR: leave no mount below DIR, whoever uses it.
unmount_below() {
    local mount
    while read -r mount; do umount --lazy "$mount" 2>/dev/null || true; done < <(mounts_below "$1")
}
