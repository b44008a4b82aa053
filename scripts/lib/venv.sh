# The checkout's own Python environment (.venv) with maid installed from here, and its compiled
# helpers. Sourced after common.sh.
# shellcheck shell=bash

# find_python: a Python that can make a virtual environment and is new enough (pyproject.toml's
# requires-python). Debian's own first: what is compiled against libsystemd and the interpreter's
# headers is then compiled against Debian's.
find_python() {
    local candidate
    for candidate in /usr/bin/python3 python3 python3.13 python3.12 python3.11; do
        candidate=$(command -v "$candidate") || continue
        if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            printf '%s\n' "$candidate"
            return
        fi
    done
    die "no Python 3.11 or newer with its venv module" "Debian 12 and newer: apt-get install python3-venv"
}

# setup_venv EXTRAS: bring .venv up to date with pyproject.toml. EXTRAS are its optional
# dependencies ("dev,deep"), "" for none. What was done is noted in .venv, so that nothing happens
# where nothing changed.
setup_venv() {
    local extras=$1 venv=$CHECKOUT/.venv wanted note python log
    wanted=$(digest <"$CHECKOUT/pyproject.toml")
    for note in "$venv/.installed-$extras" "$venv/.installed-dev,deep"; do
        [[ ! -x $venv/bin/maid || ! -f $note || $(<"$note") != "$wanted" ]] || return 0
    done
    [[ -w $CHECKOUT ]] ||
        die "$CHECKOUT is not writable, and .venv in it is not up to date" "use a checkout of your own"
    (
        flock 9 # a second script waits here
        log=$(mktemp)
        if [[ ! -x $venv/bin/python ]] || ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
            python=$(find_python)
            say "making .venv with $python"
            quietly "$log" "$python" -m venv --clear "$venv" || die "could not make $venv"
        fi
        say "installing maid and its Python packages into .venv${extras:+ (with $extras)}"
        quietly "$log" "$venv/bin/python" -m pip install --disable-pip-version-check \
            --editable "$CHECKOUT${extras:+[$extras]}" ||
            die "pip install failed" "is the Python package index reachable?"
        printf '%s\n' "$wanted" >"$venv/.installed-$extras"
        rm -f "$log"
    ) 9<"$CHECKOUT/pyproject.toml"
}

# setup_native: compile the helpers into .venv/libexec/maid, where maid looks for them; make decides
# what is out of date.
setup_native() {
    local log
    log=$(mktemp)
    (
        flock 9
        quietly "$log" make --silent -C "$CHECKOUT/daemon/native" LIBEXEC="$CHECKOUT/.venv/libexec/maid"
    ) 9<"$CHECKOUT/daemon/native/Makefile" || die "the native helpers do not compile"
    rm -f "$log"
}
