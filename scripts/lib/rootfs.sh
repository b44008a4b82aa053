# Root file systems, each made once from Debian's packages (make-rootfs.sh) and kept in the cache.
# Sourced after common.sh, packages.sh.
# shellcheck shell=bash

# Each has a recipe in make-rootfs.sh.
ROOTFS_NAMES=(
    debian-13-arm64 debian-13-amd64 debian-12-systemd debian-13-systemd debian-13-engines
    debian-12-runner debian-13-runner debian-13-build-{amd64,arm64,riscv64} debian-13-compilers-{amd64,arm64}
    busybox-{386,amd64,arm,arm64,mips64le,ppc64le,riscv64,s390x}
    programs-{386,amd64,arm,arm64,loong64,mips64le,ppc64le,riscv64,s390x}
    gcc-{amd64,arm,arm64,riscv64}
)

# rootfs NAME: print the directory of the root file system NAME; make it first if it is not there.
rootfs() {
    local name=$1 place log new
    is_rootfs_name "$name" || usage_error "no recipe for '$name'; there are: ${ROOTFS_NAMES[*]}"
    place=$(rootfs_place "$name")
    if [[ ! -d $place ]]; then
        mkdir -p "$MAID_CACHE/rootfs"
        (
            # One maker for each name: the others wait here and find it made.
            flock 9
            [[ ! -d $place ]] || exit 0
            need_packages rootfs
            need_qemu
            say "making the root file system $name (once; kept under $MAID_CACHE)"
            started=$EPOCHREALTIME
            new=$(mktemp --directory "$MAID_CACHE/rootfs/.$name.XXXXXX")
            log=$MAID_CACHE/rootfs/$name.log
            # shellcheck disable=SC2064  # the directory is the one of now
            trap "rm -rf --one-file-system '$new'" EXIT
            chmod 755 "$new"
            quietly "$log" "$CHECKOUT/scripts/lib/make-rootfs.sh" "$name" "$new" ||
                die "could not make $name" "the whole output is in $log"
            mv --no-target-directory "$new" "$place"
            say "made $name in $(seconds_since "$started") s"
        ) 9>"$MAID_CACHE/rootfs/$name.lock"
    fi
    [[ -d $place ]] || return
    printf '%s\n' "$place"
}

# rootfs_place NAME: where it is, if it was made.
rootfs_place() { printf '%s\n' "$MAID_CACHE/rootfs/$1-$(rootfs_key "$1")"; }

is_rootfs_name() {
    local known
    for known in "${ROOTFS_NAMES[@]}"; do [[ $known != "$1" ]] || return 0; done
    return 1
}

# rootfs_key NAME: changes when what makes this one does; a file system made by root is not one made
# by a user.
rootfs_key() {
    {
        echo "$1"
        is_root && echo root
        rootfs_recipe "$1"
        [[ $1 == @(busybox|gcc|programs)-* ]] || cat "$CHECKOUT"/scripts/lib/{configure-packages.sh,private-binfmt.py}
    } | digest
}

# rootfs_recipe NAME: the line of make-rootfs.sh for NAME, and every function of that file which it
# leads to.
rootfs_recipe() {
    local file=$CHECKOUT/scripts/lib/make-rootfs.sh line pattern seen=' ' text name names
    while IFS= read -r line; do
        pattern=${line%%)*}
        # shellcheck disable=SC2053  # a pattern, as in the file's own case
        if [[ $1 == $pattern ]]; then text=$line && break; fi
    done < <(sed -n '/^case \$name in/,/^esac/{/^[a-z]/p}' "$file" | tail -n +2)
    mapfile -t names < <(sed -nE 's/^([a-z_]+)\(\) \{$/\1/p' "$file")
    while [[ -n $text ]]; do
        printf '%s\n' "$text"
        line=$text text=
        for name in "${names[@]}"; do
            if [[ $seen != *" $name "* && $line =~ (^|[^a-z_])$name([^a-z_]|$) ]]; then
                seen+="$name "
                text+=$(sed -n "/^$name() {\$/,/^}\$/p" "$file")
            fi
        done
    done
}
