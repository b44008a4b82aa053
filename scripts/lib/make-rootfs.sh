#!/bin/bash
# make-rootfs.sh NAME DIR: make the root file system NAME in the empty directory DIR. Use
# scripts/rootfs, which keeps the result. A program of its own, not a library, so that any failure
# ends it: bash forgets `set -e` in a function whose status is tested.
set -euo pipefail
lib=$(dirname "$0")
. "$lib/common.sh"
. "$lib/packages.sh"

# mirror_in_lists: the archive that this machine's package lists are from; nothing without lists.
mirror_in_lists() {
    local format='$(RELEASE) $(REPO_URI)'
    apt-get indextargets --format "$format" 'Created-By: Packages' 2>/dev/null |
        sed -n "s/^$(os_release VERSION_CODENAME) //p" | head -n 1
}

# debian_mirror: the archive this machine installs from. The releases that it does not run itself
# are in the same archive.
debian_mirror() {
    local uri
    uri=$(mirror_in_lists)
    if [[ -z $uri ]] && is_root; then
        apt-get update >&2
        uri=$(mirror_in_lists)
    fi
    [[ -n $uri ]] || die "this machine's package sources name no archive" "as root: apt-get update"
    printf '%s\n' "$uri"
}

# apt_settings: how this machine reaches and trusts its archive (proxies, dates), for an apt that
# serves another root.
apt_settings() {
    apt-config dump | grep -E '^Acquire::(http|https|Check-|Retries|By-Hash)' || true
}

# extract_packages SUITE ARCHITECTURE DIR KEEP PACKAGE…: resolve, fetch, verify and unpack the
# packages, and run none of their scripts: no emulator is needed, nor root. KEEP=debs leaves the
# packages in DIR/var/cache/apt/archives.
extract_packages() {
    local suite=$1 architecture=$2 new=$3 keep=$4 mode=root skip=check/qemu,check/empty package
    local includes=() mirror
    shift 4
    mirror=$(debian_mirror)
    for package; do includes+=(--include="$package"); done
    # chrootless: the only mode that asks for no id but the caller's own.
    is_root || mode=chrootless
    [[ $keep != debs ]] || skip+=,cleanup/apt/cache
    find "$new" -mindepth 1 -delete # what a try with another suite left
    mmdebstrap --mode="$mode" --architectures="$architecture" --variant=extract --skip="$skip" \
        --aptopt='Acquire::Languages "none"' --aptopt=<(apt_settings) "${includes[@]}" \
        "$suite" "$new" "$mirror" || return
    rm -f "$new/etc/resolv.conf" "$new/etc/hostname" # this machine's, copied by mmdebstrap
}

# make_debian SUITE ARCHITECTURE DIR PACKAGE…: a minimal Debian with the packages. This machine's own
# dpkg unpacks them, in a fraction of the time that the foreign one takes under emulation; only the
# packages' scripts are emulated, in a namespace with its own binfmt table. Without root, or on a
# kernel without such tables (before 6.7), the packages stay unconfigured: enough to compile and run
# programs.
make_debian() {
    local suite=$1 architecture=$2 new=$3
    shift 3
    extract_packages "$suite" "$architecture" "$new" debs \
        '?essential' apt base-files base-passwd "$@"
    if is_root; then
        configure_packages "$architecture" "$new"
    else
        say "not root: the packages stay unconfigured"
    fi
    rm -rf "$new"/var/cache/apt/archives/*.deb
    # What base-files' and base-passwd's scripts would have made.
    mkdir -p "$new"/usr/local/{bin,etc,include,lib,sbin,share,src} "$new"/{home,media,mnt,opt,srv}
    for database in passwd group; do
        [[ -e $new/etc/$database ]] ||
            cp "$new/usr/share/base-passwd/$database.master" "$new/etc/$database"
    done
}

# configure_packages ARCHITECTURE DIR: run the unpacked packages' scripts, emulated where the
# architecture is foreign.
configure_packages() {
    local architecture=$1 new=$2 enter=(unshare --mount) qemu
    if [[ $architecture != "$(dpkg --print-architecture)" ]]; then
        qemu=$(find_qemu "${architecture/#arm64/aarch64}")
        enter=("$lib/private-binfmt.py" "$qemu")
        # The CPU model spares QEMU the pointer authentication on which Debian 13 for arm64 would
        # spend most of its time.
        [[ $architecture != arm64 ]] || enter=(env QEMU_CPU=neoverse-n1 "${enter[@]}")
        if ! "${enter[@]}" true; then
            say "this kernel has no binfmt table for each namespace: the packages stay unconfigured"
            return
        fi
    fi
    "${enter[@]}" "$lib/configure-packages.sh" "$new"
}

# make_busybox OCI-ARCHITECTURE DIR: busybox alone, statically linked: what a test that starts many
# steps wants.
make_busybox() {
    local oci=$1 new=$2 architecture=$1 target unpacked=$2/.unpacked busybox
    # Old stable first: its package lists hardly change, so a mirror that caches them does not serve
    # outdated ones.
    local suite suites=(bookworm trixie)
    case $oci in
    386) architecture=i386 target=i386 ;;
    amd64) target=x86_64 ;;
    arm) architecture=armhf target=arm ;;
    arm64) target=aarch64 ;;
    mips64le) architecture=mips64el target=mips64el ;;
    ppc64le) architecture=ppc64el target=ppc64le ;;
    riscv64) target=riscv64 suites=(trixie forky) ;; # new in Debian 13
    s390x) target=s390x ;;
    esac
    mkdir "$unpacked"
    chmod 755 "$unpacked"
    for suite in "${suites[@]}"; do
        if extract_packages "$suite" "$architecture" "$unpacked" none busybox-static; then
            break
        fi
    done
    mkdir -p "$new"/{dev,etc,proc,root,sys,tmp,usr/bin,usr/sbin,var/tmp}
    chmod 1777 "$new/tmp" "$new/var/tmp"
    ln -s usr/bin "$new/bin"
    ln -s usr/sbin "$new/sbin"
    busybox=$(find "$unpacked" -path '*/bin/busybox' -type f -print -quit)
    install -m 755 "$busybox" "$new/usr/bin/busybox"
    rm -rf "$unpacked"
    printf '%s\n' root:x:0:0:root:/root:/bin/sh nobody:x:65534:65534:nobody:/:/bin/false \
        >"$new/etc/passwd"
    printf '%s\n' root:x:0: nogroup:x:65534: >"$new/etc/group"
    # Asked directly through the emulator, or natively: no table is involved.
    busybox_applets "$target" "$new/usr/bin/busybox" | while read -r path; do
        ln -s "$([[ $path == bin/* ]] || echo ../bin/)busybox" "$new/usr/$path"
    done
}

# busybox_applets TARGET BUSYBOX: the paths of its commands below /usr ("bin/ls", "sbin/init").
busybox_applets() {
    local run=()
    [[ $(uname -m) == "$1" ]] || run=("$(find_qemu "$1")")
    "${run[@]}" "$2" --list-full | sed -nE 's#^(usr/)?(s?bin/[^/]+)$#\2#p' | grep -v '/busybox$'
}

# make_systemd SUITE DIR PACKAGE…: a native Debian that boots under its own systemd, with what maid's
# service needs, and with emulators that systemd-binfmt registers, as on a machine that has more than
# maid.
make_systemd() {
    local suite=$1 new=$2 qemu=(qemu-user qemu-user-binfmt)
    shift 2
    is_root || die "a bootable root file system is made as root only"
    [[ $suite != bookworm ]] || qemu=(qemu-user-static)
    make_debian "$suite" "$(dpkg --print-architecture)" "$new" \
        crun dbus iproute2 libnss-systemd python3 systemd systemd-sysv udev "${qemu[@]}" "$@"
}

# make_runner SUITE DIR: the same with what scripts/install compiles with, and what an ordinary user
# builds images with: the machine of a CI runner.
make_runner() {
    make_systemd "$1" "$2" buildah gcc libc6-dev libsystemd-dev make netavark pkg-config python3-dev \
        python3-venv skopeo uidmap umoci
}

# make_engines DIR: a native Debian 13 with the container engines of its time, for machines that have
# older ones; they run in a chroot (tests/engines). Without recommendations: no init, no firewall.
make_engines() {
    is_root || die "engines run as root only"
    make_debian trixie "$(dpkg --print-architecture)" "$1" \
        buildah ca-certificates crun docker-buildx docker-cli docker.io fuse-overlayfs mmdebstrap \
        podman procps runc skopeo uidmap
}

# make_build ARCHITECTURE DIR: a Debian 13 in which the packages of `scripts/bench packages` can be
# built without an archive, and everything of `scripts/bench acceleration` runs.
make_build() {
    make_debian trixie "$1" "$2" \
        autoconf automake brotli build-essential bzip2 cpio debhelper file less libncurses-dev \
        libreadline-dev libtool lz4 patch pigz texinfo xz-utils xzdec zstd
}

# make_compilers ARCHITECTURE DIR: a Debian 13 with the compilers that are not GCC's: 2 GB.
make_compilers() {
    make_debian trixie "$1" "$2" \
        clang g++ gcc golang-go libc6-dev libclang-rt-19-dev lld llvm make python3 rustc
}

# make_programs OCI-ARCHITECTURE DIR: gcc, libc and Python of the newest Debian that has them for the
# architecture, unpacked only: programs for `scripts/bench cpu`. A mirror that caches package lists
# may have no fitting ones of a release that is still updated; the one before will do then.
make_programs() {
    local architecture=$1 new=$2 suite suites=(trixie bookworm) directory link
    case $1 in
    386) architecture=i386 ;;
    arm) architecture=armhf ;;
    loong64) suites=(forky sid) ;; # new in Debian 14
    mips64le) architecture=mips64el suites=(bookworm) ;; # its last
    ppc64le) architecture=ppc64el ;;
    riscv64) suites=(trixie forky) ;; # new in Debian 13
    esac
    for suite in "${suites[@]}"; do
        if extract_packages "$suite" "$architecture" "$new" none gcc libc6-dev python3; then
            break
        fi
    done
    [[ -e $new/usr/bin/gcc ]]
    for directory in lib lib32 lib64; do # merged by base-files since Debian 13
        [[ -e $new/$directory || ! -d $new/usr/$directory ]] || ln -s "usr/$directory" "$new"
    done
    mkdir -p "$new/tmp"
    # ld.so by an absolute link: right in a chroot, wrong for qemu -L.
    find "$new"/lib*/ -maxdepth 2 -name 'ld*.so*' -lname '/*' | while read -r link; do
        ln -srfn "$new$(readlink "$link")" "$link"
    done
}

# make_gcc OCI-ARCHITECTURE DIR: a minimal Debian with apt, gcc and libc, for tests that build images
# from it: small, quick to make, and the same with root or without. The packages count as installed,
# though none of their scripts has run: those that a compiler needs have nothing of consequence in
# them. /srv/hello.deb is a package that is not installed and needs nothing more.
make_gcc() {
    local architecture=$1 new=$2 suite suites=(trixie bookworm) deb made
    case $1 in
    arm) architecture=armhf ;;
    # New in Debian 13. A mirror that caches lists may have outdated ones of any of them.
    riscv64) suites=(trixie forky sid) ;;
    esac
    for suite in "${suites[@]}"; do
        if extract_packages "$suite" "$architecture" "$new" debs \
            '?essential' apt base-files base-passwd gcc hello libc6-dev; then
            made=yes
            break
        fi
    done
    [[ -n ${made-} ]]
    deb=$(echo "$new"/var/cache/apt/archives/hello_*.deb)
    rm -f "$new/usr/bin/hello"
    mkdir -p "$new/srv" "$new"/usr/local/{bin,lib,sbin} "$new/tmp"
    mv "$deb" "$new/srv/hello.deb"
    record_packages "$new" "$new"/var/cache/apt/archives/*.deb
    rm -rf "$new"/var/cache/apt/archives/*.deb \
        "$new"/usr/share/{bug,doc,doc-base,gcc,info,lintian,locale,man,zoneinfo} \
        "$new"/usr/lib{,exec}/gcc/*/*/lto1 "$new"/usr/lib/gcc/*/*/lib{a,hwa,l,t,ub}san* \
        "$new"/usr/lib/*/lib{a,hwa,l,t,ub}san.so* "$new"/usr/bin/*lto-dump*
    for deb in passwd group; do cp "$new/usr/share/base-passwd/$deb.master" "$new/etc/$deb"; done
    echo '_apt:x:42:65534::/nonexistent:/usr/sbin/nologin' >>"$new/etc/passwd"
    # As container images have it: an image that was interrupted is made again.
    echo force-unsafe-io >"$new/etc/dpkg/dpkg.cfg.d/unsafe-io"
}

# record_packages DIR DEB…: write into DIR's package database that the packages are installed.
record_packages() {
    local database=$1/var/lib/dpkg deb name control
    shift
    rm -rf "$database"
    mkdir -p "$database"/{info,updates,triggers}
    for deb; do
        name=$(dpkg-deb --field "$deb" Package)
        [[ $(dpkg-deb --field "$deb" Multi-Arch) != same ]] ||
            name+=:$(dpkg-deb --field "$deb" Architecture)
        { echo "Status: install ok installed" && dpkg-deb --field "$deb" && echo; } >>"$database/status"
        dpkg-deb --fsys-tarfile "$deb" | tar -t | sed 's#^\./#/#; s#/$##; s#^$#/.#' \
            >"$database/info/$name.list"
        dpkg-deb --control "$deb" "$database/control"
        for control in "$database"/control/*; do
            [[ $control == */control ]] || mv "$control" "$database/info/$name.${control##*/}"
        done
        rm -r "$database/control"
    done
    printf '1\n' >"$database/info/format"
}

name=$1 new=$2
case $name in
debian-13-build-*) make_build "${name##*-}" "$new" ;;
debian-13-compilers-*) make_compilers "${name##*-}" "$new" ;;
debian-13-*64) make_debian trixie "${name##*-}" "$new" gcc libc6-dev make python3 ;;
debian-12-systemd) make_systemd bookworm "$new" ;;
debian-13-systemd) make_systemd trixie "$new" ;;
debian-12-runner) make_runner bookworm "$new" ;;
debian-13-runner) make_runner trixie "$new" ;;
debian-13-engines) make_engines "$new" ;;
busybox-*) make_busybox "${name#busybox-}" "$new" ;;
programs-*) make_programs "${name#programs-}" "$new" ;;
gcc-*) make_gcc "${name#gcc-}" "$new" ;;
*) usage_error "no recipe for '$name'" ;;
esac
