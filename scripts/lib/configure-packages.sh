#!/bin/bash
# configure-packages.sh DIR: turn the packages unpacked in DIR (and kept in its apt cache) into
# installed ones: dpkg records them and runs their scripts in a chroot. Run as root, in a mount
# namespace of its own; for foreign packages in one with an emulator (private-binfmt.py).
set -euo pipefail

root=$1
mount --make-rprivate / 2>/dev/null || true # already so in a user namespace
mount --rbind /dev "$root/dev"
mount --rbind /proc "$root/proc"
mount -t tmpfs tmpfs "$root/tmp"

mkdir -p "$root"/var/lib/dpkg/{info,updates}
: >"$root/var/lib/dpkg/status"

export DEBIAN_FRONTEND=noninteractive DEBCONF_NONINTERACTIVE_SEEN=true LC_ALL=C HOME=/
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
# Debian's services are not to be started in a chroot; policy-rc.d is how it asks.
printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d"
chmod 755 "$root/usr/sbin/policy-rc.d"
trap 'rm -f "$root/usr/sbin/policy-rc.d"' EXIT

# The host's dpkg does the work: it is native, and its notion of the architecture is overridden.
dpkg=(dpkg --root="$root" --force-architecture --force-unsafe-io)
"${dpkg[@]}" --force-depends --unpack "$root"/var/cache/apt/archives/*.deb
# Scripts use these without a dependency on them, being essential.
"${dpkg[@]}" --force-depends --configure base-passwd base-files libc6 dash
# To this dpkg, packages for all architectures belong to its own one, so some of their dependencies
# on foreign packages look unmet. The second run configures those; the first keeps the right order
# for all the others.
"${dpkg[@]}" --configure --pending || "${dpkg[@]}" --force-depends --configure --pending
[[ -z $("${dpkg[@]}" --audit) ]]
