"""dpkg and apt answer natively as under QEMU, and leave the same system behind."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from accel_cases import Cases, run_cases
from accelerated import daemon
from daemons import rootfs

# Two small packages and a local archive of them, made by the tools themselves.
PREPARE = r"""
export SOURCE_DATE_EPOCH=1700000000
for name in one two; do
    mkdir -p $name/DEBIAN $name/usr/share/doc/$name $name/etc
    printf 'Package: %s\nVersion: 1.0\nArchitecture: %s\nMaintainer: m <m@example.org>\n' \
        $name $([ $name = one ] && echo all || dpkg --print-architecture) >$name/DEBIAN/control
    [ $name = one ] || echo 'Depends: one' >>$name/DEBIAN/control
    echo "Description: the package $name" >>$name/DEBIAN/control
    echo /etc/$name.conf >$name/DEBIAN/conffiles
    echo $name >$name/etc/$name.conf
    printf '#!/bin/sh\ndpkg --print-architecture >/var/lib/%s.arch\n' $name >$name/DEBIAN/postinst
    chmod 755 $name/DEBIAN/postinst
    seq 5000 >$name/usr/share/doc/$name/numbers
    touch -d @1700000000 $(find $name)
done
mkdir -p /srv/archive
"""

COMMANDS = [
    "dpkg --version; dpkg-query --version; dpkg-deb --version; dpkg-divert --version",
    "dpkg --print-architecture; dpkg --print-foreign-architectures; dpkg --audit",
    "apt-get --version; apt-cache --version; apt-config dump | grep -v ^Dir::Log",
    "apt-config shell a APT::Architecture; apt-mark showmanual; /usr/lib/apt/methods/http -v",
    "for p in one two; do dpkg-deb --root-owner-group -b $p /srv/archive; done",
    "cd /srv/archive && sha256sum *.deb && dpkg-deb -I two_*.deb && dpkg-deb -c one_*.deb",
    "cd /srv/archive && dpkg-scanpackages . 2>&1 >Packages && cat Packages && xz -k Packages",
    "echo 'deb [trusted=yes] file:/srv/archive ./' >/etc/apt/sources.list; rm -f"
    " /etc/apt/sources.list.d/*; apt-get update -o APT::Sandbox::User=root",
    "apt-cache policy two; apt-cache depends two; apt-cache show one; apt-cache stats",
    "apt-get install -y -q two; cat /var/lib/one.arch /var/lib/two.arch",
    "dpkg -l one two; dpkg -L two; dpkg -S /etc/one.conf; dpkg -V one two; dpkg -s one",
    "dpkg-divert --add --rename --divert /etc/one.orig /etc/one.conf; dpkg-divert --list '*one*'",
    "dpkg-statoverride --add root root 0600 /etc/two.conf; dpkg-statoverride --list",
    "echo changed >/etc/two.conf; apt-get remove -y -q one; dpkg -l one two; dpkg --purge two",
    "update-alternatives --install /usr/bin/x x /bin/true 5; update-alternatives --display x",
    "file /usr/bin/dpkg /srv/archive/*.deb /etc/passwd /usr/share/doc; file -i /usr/bin/perl",
    "dpkg --compare-versions 1.0~rc1 lt 1.0; echo $?; dpkg -i /nosuch.deb",
]


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cases]:
    with daemon() as made:
        tree, place = rootfs("debian-13-build-arm64"), tmp_path_factory.mktemp("packaging")
        yield run_cases(made.start(), tree, COMMANDS, place, PREPARE)


@pytest.mark.parametrize("command", COMMANDS)
def test_it_answers_as_under_qemu(cases: Cases, command: str) -> None:
    assert _without_rates(cases.native[command]) == _without_rates(cases.plain[command])


def test_the_packages_are_the_foreign_architectures(cases: Cases) -> None:
    assert cases.native[COMMANDS[9]].endswith("arm64\narm64\n--- 0\n")


@pytest.mark.parametrize("tool", ["dpkg", "dpkg-query", "dpkg-deb", "apt-get", "apt-cache", "file"])
def test_it_did_run_natively(cases: Cases, tool: str) -> None:
    assert cases.tools.get(tool, 0) > 0


def test_they_left_the_same_files(cases: Cases) -> None:
    """apt's caches hold addresses within themselves and times, and its logs say when."""
    kept = ("/var/cache/apt", "/var/log", "/var/lib/dpkg/info", "/var/lib/apt/lists")
    assert [each for each in cases.differences if not any(path in each for path in kept)] == []


def _without_rates(text: str) -> list[str]:
    """apt's lines without how long something took."""
    return [line.partition(" in ")[0] for line in text.splitlines()]
