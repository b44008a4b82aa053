# A run that a person watches: phases with their times, and colours where a terminal shows them.
# Sourced after common.sh.
# shellcheck shell=bash

if [[ -t 2 && -z ${NO_COLOR-} && ${TERM-dumb} != dumb ]]; then
    bold=$'\e[1m' green=$'\e[32m' red=$'\e[31m' plain=$'\e[0m'
else
    bold='' green='' red='' plain=''
fi

# heading WORDS: what comes next.
heading() { say "$bold$*$plain"; }

# phase WORDS CMD…: run CMD and say how long it took. Its failure is the caller's: `set -e` stays in
# force within CMD.
phase() {
    local words=$1 start=$EPOCHREALTIME
    shift
    "$@"
    say "$green✓$plain $words ($(seconds_since "$start") s)"
}

# host_table: every entry of this machine's own binfmt table, to be compared with what it was. An
# unmounted table stays so.
host_table() {
    local table=/proc/sys/fs/binfmt_misc entry
    if ! grep -q " $table .* - binfmt_misc " /proc/self/mountinfo; then
        echo "not mounted"
        return
    fi
    for entry in "$table"/*; do
        echo "== $entry"
        [[ $entry == */register ]] || cat "$entry"
    done
}
