"""Whole Debian packages by dpkg-buildpackage: natively, by plain QEMU and accelerated.

Each is built from the same source at the same path, with what its tree has installed and without a
network. The .deb files of plain QEMU and of the accelerated build must be the same, byte for byte;
where they are not, the files in them are compared. A build by plain QEMU takes minutes, so what it
made and cost is kept in the cache for the source's version, the tree and the emulator; with --fresh
it is built again, so that all figures are of one run.
"""

import argparse
import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import debian
from common import aim, cache, end_tidily, heading, hide_unified, median, row
from sides import ACCELERATED, NATIVE, PLAIN, TARGETS, Ran, Side, sides

PACKAGES = {
    "arm64": ("less", "bzip2", "lzip", "gzip"),
    "riscv64": ("less", "bzip2"),
}

# Binary packages of the architecture alone: bzip2's documentation wants DocBook. Tests of the
# package are left out in all three: some of them would time out under plain QEMU.
BUILD = "dpkg-buildpackage --build=any --unsigned-source --unsigned-changes"
ENVIRONMENT = ("DEB_BUILD_OPTIONS=nocheck",)

MOST, LEAST = 2.0, 10.0


@dataclass(frozen=True)
class Built:
    """What a build cost and made: seconds, and a directory of .deb files. `kept`: it was built in
    an earlier run."""

    ran: list[Ran]
    debs: Path
    kept: bool = False

    @property
    def cpu(self) -> float:
        """The median of CPU seconds."""
        return median([ran.cpu for ran in self.ran])

    @property
    def wall(self) -> float:
        """The median of seconds that passed."""
        return median([ran.wall for ran in self.ran])


def unpack(native: Side, description: Path, place: Path) -> Path:
    """The directory that the source package is in once dpkg-source has unpacked it, natively."""
    changes = place / "unpacking"
    native.run(
        f"mkdir /build && cd /build && dpkg-source --no-check -x /sources/{description.name}",
        changes,
        log=place / "unpacking.log",
        binds=[f"{description.parent}:/sources:ro"],
    )
    (source,) = (path for path in (changes / "upper/build").iterdir() if path.is_dir())
    unpacked = place / source.name
    source.rename(unpacked)
    shutil.rmtree(changes)
    return unpacked


def build(side: Side, source: Path, place: Path, rounds: int) -> Built:
    """Build the package; what the last round made is kept."""
    ran, debs = [], place / f"debs-{side.name.replace(' ', '-')}-{source.name}"
    for number in range(rounds):
        changes = debs.with_name(f"{debs.name}-{number}")
        upper = changes / "upper/build"
        upper.mkdir(parents=True)
        shutil.copytree(source, upper / source.name, symlinks=True)
        ran.append(
            side.run(
                f"cd /build/{source.name} && {BUILD}",
                changes,
                log=place.parent / f"build-{side.architecture}-{side.name}-{source.name}.log",
                environment=ENVIRONMENT,
            )
        )
        shutil.rmtree(debs, ignore_errors=True)
        debs.mkdir()
        for file in upper.glob("*.deb"):
            shutil.copy2(file, debs)
        shutil.rmtree(changes)
    return Built(ran, debs)


def build_plain(side: Side, source: Path, place: Path, rounds: int, fresh: bool) -> Built:
    """As `build`, from the cache if it is there."""
    key = f"{side.tree} {side.emulator} {BUILD} {ENVIRONMENT}"
    digest = hashlib.sha256(key.encode()).hexdigest()[:12]
    kept = cache() / "bench" / f"plain-{side.architecture}-{source.name}-{digest}"
    if kept.is_dir() and not fresh:
        ran = [Ran(**each) for each in json.loads((kept / "figures.json").read_text())]
        return Built(ran, kept, kept=True)
    built = build(side, source, place, rounds)
    new = kept.with_name(f".{kept.name}")
    shutil.rmtree(new, ignore_errors=True)
    shutil.copytree(built.debs, new)
    (new / "figures.json").write_text(json.dumps([asdict(each) for each in built.ran]))
    shutil.rmtree(kept, ignore_errors=True)
    new.rename(kept)
    return built


def members(deb: Path) -> dict[str, tuple[object, ...]]:
    """What a .deb file installs and its control files: mode, owner, target and digest by name."""
    found: dict[str, tuple[object, ...]] = {}
    for option in ("--fsys-tarfile", "--ctrl-tarfile"):
        data = subprocess.run(["dpkg-deb", option, deb], capture_output=True, check=True).stdout
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            for each in archive:
                file = archive.extractfile(each) if each.isreg() else None
                content = hashlib.sha256(file.read()).hexdigest() if file else ""
                owner = (each.uid, each.gid, each.uname, each.gname)
                found[f"{option[2:6]} {each.name}"] = (
                    *(each.type, oct(each.mode), owner, each.mtime, each.linkname, content),
                )
    return found


def differences(one: Path, other: Path) -> tuple[int, list[str]]:
    """How many files the packages in two directories have, and what differs."""
    names = [{file.name for file in each.glob("*.deb")} for each in (one, other)]
    said = [f"{name}: only one has built it" for name in sorted(names[0] ^ names[1])]
    count = 0
    for name in sorted(names[0] & names[1]):
        first, second = (members(each / name) for each in (one, other))
        count += len(first)
        if (one / name).read_bytes() == (other / name).read_bytes():
            continue
        said.append(f"{name}: the bytes differ")
        said += [
            f"{name}: {path}"
            for path in sorted(first.keys() | second.keys())
            if first.get(path) != second.get(path)
        ]
    return count, said


def show(name: str, native: Built, plain: Built, ours: Built) -> None:
    """The figures of one package."""
    print(f"\n  {name}")
    for what, built in ((NATIVE, native), (PLAIN, plain), (ACCELERATED, ours)):
        note = "  (of an earlier run)" if built.kept else ""
        row(f"  {what}", f"{built.wall:.1f} s, {built.cpu:.1f} s of CPU{note}")
    aim("  accelerated/native", ours.wall / native.wall, MOST)
    aim("  plain/accelerated", plain.wall / ours.wall, LEAST, at_most=False)
    row(
        "  by CPU time",
        f"{ours.cpu / native.cpu:.2f} times native, plain is {plain.cpu / ours.cpu:.1f} times that",
    )
    last = ours.ran[-1]
    row("  programs", f"{sum(last.native.values())} native, {last.emulated} emulated")
    count, said = differences(plain.debs, ours.debs)
    debs = len(list(ours.debs.glob("*.deb")))
    row(
        "  plain and accelerated",
        f"{debs} packages, {count} files: " + ("DIFFER" if said else "identical"),
    )
    for line in said[:20]:
        print(f"      {line}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/bench packages", description=__doc__)
    parser.add_argument("packages", nargs="*", metavar="PACKAGE")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--architecture", choices=sorted(TARGETS), default="arm64")
    parser.add_argument("--fresh", action="store_true", help="plain QEMU's too in this run")
    options = parser.parse_args()
    architecture: str = options.architecture
    names: Sequence[str] = options.packages or PACKAGES[architecture]
    hide_unified()
    end_tidily()
    heading(f"packages: Debian 13 {architecture}, dpkg-buildpackage")
    found = debian.sources(names)
    trees = [Path(os.environ[f"BENCH_{each}"]).resolve() for each in ("NATIVE", "FOREIGN")]
    with (
        tempfile.TemporaryDirectory(prefix="packages-", dir=cache() / "bench") as temporary,
        sides(architecture, *trees) as made,
    ):
        place = Path(temporary)
        row(PLAIN, made[PLAIN].emulator)
        for name in names:
            source = unpack(made[NATIVE], found[name], place)
            native = build(made[NATIVE], source, place, options.rounds)
            ours = build(made[ACCELERATED], source, place, options.rounds)
            plain = build_plain(made[PLAIN], source, place, options.rounds, options.fresh)
            show(f"{name} {debian.version(found[name])}", native, plain, ours)


if __name__ == "__main__":
    main()
