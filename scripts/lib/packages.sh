# Debian packages: which are needed for what, and how they are installed. Sourced after common.sh.
# shellcheck shell=bash

# packages_for USE…: the packages for each use, one a line.
packages_for() {
    local use
    for use; do
        case $use in
        # systemd-python is compiled when it is installed, the native helpers by `make`.
        build)
            printf '%s\n' gcc libc6-dev libsystemd-dev make pkg-config python3 python3-dev python3-venv
            ;;
        run) printf '%s\n' crun mount ;;
        rootfs) printf '%s\n' debian-archive-keyring mmdebstrap mount python3 ;;
        engines) printf '%s\n' buildah runc ;;
        images)
            printf '%s\n' buildah skopeo umoci
            # Since Debian 13 buildah starts nothing without it, and only recommends it.
            [[ $(debian_release) == 12 ]] || echo netavark
            ;;
        check) printf '%s\n' libfaketime shellcheck ;;
        systemd) printf '%s\n' systemd systemd-container util-linux ;;
        *) die "no packages are known for the use $use" ;;
        esac
    done | sort -u
}

# missing_packages PACKAGE…: those of the packages that are not installed, one a line.
missing_packages() {
    comm -13 \
        <({ dpkg-query --show --showformat '${db:Status-Status} ${Package}\n' "$@" 2>/dev/null || true; } |
            sed -n 's/^installed //p' | sort -u) \
        <(printf '%s\n' "$@" | sort -u)
}

# need_packages USE…: install what is missing for the uses, and say so. Not root: an error that
# names what is missing.
need_packages() {
    local wanted missing
    mapfile -t wanted < <(packages_for "$@")
    mapfile -t missing < <(missing_packages "${wanted[@]}")
    ((${#missing[@]} == 0)) || install_packages "${missing[@]}"
}

# install_packages PACKAGE…: without recommendations: they bring services, and what registers in the
# host's binfmt table.
install_packages() {
    [[ -n $(debian_release) ]] ||
        die "this is not Debian, and these packages are not installed by their Debian names: $*" \
            "install their counterparts by hand"
    is_root || die "these packages are missing: $*" "as root: apt-get install --no-install-recommends $*"
    say "installing Debian packages: $*"
    with_fresh_lists apt-get install --yes --quiet --no-install-recommends \
        -o Dpkg::Options::=--force-confold "$@"
}

# with_fresh_lists CMD…: run an apt-get command. The package lists may be absent (a container image)
# or so old that they name what is gone: then fetch them and run it again.
with_fresh_lists() {
    local log
    log=$(mktemp)
    export DEBIAN_FRONTEND=noninteractive
    if ! "$@" </dev/null >"$log" 2>&1; then
        quietly "$log" apt-get update || die "apt-get update failed" "is the package mirror reachable?"
        quietly "$log" "$@" || die "apt-get failed" "its output is above"
    fi
    rm -f "$log"
}

# need_lists: have the package lists from which root file systems are made (make-rootfs.sh): two that
# are made at once must not both fetch them.
need_lists() {
    if is_root && [[ -z $(apt-get indextargets 'Created-By: Packages' 2>/dev/null) ]]; then
        apt-get --quiet=2 update >&2 ||
            die "apt-get update failed" "is the package mirror reachable?"
    fi
}

# find_qemu TARGET: the path of a static emulator; the name with -static is what distributions call
# one.
find_qemu() { command -v "qemu-$1-static" || command -v "qemu-$1"; }

# something_registers: whether this machine has what puts an installed package's emulators into the
# binfmt table.
something_registers() { [[ -d /run/systemd/system ]] || command -v update-binfmts >/dev/null; }

# need_qemu: have static user-mode emulators in PATH, without a write to the host's binfmt table.
#
# Debian 13's qemu-user holds programs only (qemu-user-binfmt registers them, and is not asked for).
# Debian 12's qemu-user-static also holds /usr/lib/binfmt.d/qemu-*.conf, for which a running systemd
# (by a dpkg trigger) and binfmt-support (from the package's postinst) register at once. There, and
# for an ordinary user, its files are unpacked into the cache instead of installed.
need_qemu() {
    local package=qemu-user unpacked
    [[ $(debian_release) != 12 ]] || package=qemu-user-static
    [[ -n $(missing_packages "$package") ]] || return 0
    if is_root && { [[ $package == qemu-user ]] || ! something_registers; }; then
        install_packages "$package"
        return
    fi
    unpacked=$MAID_CACHE/$package
    [[ -d $unpacked ]] || unpack_package "$package" "$unpacked"
    PATH=$PATH:$unpacked/usr/bin
}

# registry: print the path of docker-registry's program. The package is unpacked into the cache: its
# installation would start a service.
registry() {
    local unpacked=$MAID_CACHE/docker-registry
    [[ -d $unpacked ]] || unpack_package docker-registry "$unpacked"
    printf '%s\n' "$unpacked/usr/bin/docker-registry"
}

# unpack_package PACKAGE DIR: fetch and verify the package and put its files, uninstalled, into DIR.
unpack_package() {
    mkdir -p "$MAID_CACHE"
    (
        flock 9
        [[ ! -d $2 ]] || exit 0
        say "unpacking the Debian package $1 into $2: it is not to be installed"
        new=$(mktemp --directory "$2.XXXXXX")
        # shellcheck disable=SC2064  # the directory of now
        trap "rm -rf '$new'" EXIT
        cd "$new" || exit
        with_fresh_lists apt-get download --quiet "$1"
        dpkg-deb --extract ./*.deb files
        mv -T files "$2"
    ) 9>"$2.lock"
}
