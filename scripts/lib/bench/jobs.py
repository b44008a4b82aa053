"""The jobs of `scripts/bench acceleration`: what is run, on what, and what is aimed at.

A job starts from the tree with /work in it (`files` of Material) and runs a shell script there.
"""

import lzma
import shutil
import subprocess
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import debian

INSTALLED = ("git",)
"""What `apt-get install` gets; it brings some thirty packages."""

UNPACKED = ("bc", "ed", "unzip", "zip")
"""What `dpkg -i` gets; all they need is in the tree."""


@dataclass(frozen=True)
class Job:
    """`files` are put into /work (the names of Material); `before` is a script that is run once and
    whose changes are the state that `script` starts from. Aims are accelerated/native and
    plain/accelerated, of CPU time or (`wall`) of time that passes; 0 is no aim."""

    name: str
    script: str
    files: Sequence[str] = ()
    before: str = ""
    most: float = 0.0
    least: float = 0.0
    wall: bool = False


_SOURCES = """
rm -rf /etc/apt/sources.list.d/* /etc/apt/sources.list
echo "deb $ARCHIVE trixie main" >/etc/apt/sources.list
echo 'Acquire::Languages "none";' >/etc/apt/apt.conf.d/no-languages
echo force-unsafe-io >/etc/dpkg/dpkg.cfg.d/unsafe-io
"""
# As the distribution's container images have it: no translations, and no fsync for each file.

_GXX = "g++ -std=c++17 -O2 -g -Ifmt/include"

JOBS = (
    Job(
        "C, -O2 -g, four files of Lua",
        "for each in lvm lparser ltable lstrlib; do gcc -O2 -g -c lua/src/$each.c; done\n"
        "ar rcs liblua.a *.o",
        ("lua",),
        most=1.3,
        least=10,
    ),
    Job(
        "C++, -O2 -g, fmt",
        f"{_GXX} -c fmt/src/format.cc",
        ("fmt",),
        most=1.3,
        least=10,
    ),
    Job(
        "LTO, zlib as a shared object",
        "gcc -O2 -flto -DHAVE_UNISTD_H -fPIC -shared -o libz.so zlib/*.c",
        ("zlib",),
        most=1.3,
        least=10,
    ),
    Job("configure, zlib", "cd zlib && ./configure --prefix=/usr", ("zlib",), most=3),
    Job("xz -6, 6 MB", "xz -6 -T1 -k small.tar", ("small.tar",), most=1.3),
    Job("xz -d, 60 MB", "xz -d -k large.tar.xz", ("large.tar.xz",), most=1.3),
    Job("gzip, 6 MB", "gzip -n -k small.tar", ("small.tar",), most=1.3),
    Job("zstd -3, 60 MB", "zstd -q -3 -T1 large.tar", ("large.tar",), most=1.3),
    Job(
        "tar, 60 MB out and in",
        "mkdir out && tar -xf large.tar -C out\n"
        "tar --sort=name --mtime=@0 -cf again.tar -C out . && rm -r out",
        ("large.tar",),
        most=1.3,
    ),
    Job(
        f"dpkg -i, {len(UNPACKED)} packages",
        "dpkg -i debs/*.deb",
        ("debs",),
        before=_SOURCES,
        least=4,
        wall=True,
    ),
    Job("apt-get update", "apt-get update", before=_SOURCES, least=4, wall=True),
    Job(
        "apt-get install git",
        f"apt-get install -y --no-install-recommends {' '.join(INSTALLED)}",
        before=f"{_SOURCES}apt-get update",
        least=4,
        wall=True,
    ),
)


@dataclass(frozen=True)
class Material:
    """Where the files of jobs lie; those in `own` differ from architecture to architecture."""

    shared: Path
    own: dict[str, Path] = field(default_factory=dict)

    def put(self, job: Job, architecture: str, changes: Path) -> None:
        """Lay the job's files into /work of a tree whose changes are in `changes`/upper."""
        work = changes / "upper/work"
        work.mkdir(parents=True)
        for name in job.files:
            source = self.own[architecture] / "debs" if name == "debs" else self.shared / name
            if source.is_dir():
                shutil.copytree(source, work / name, symlinks=True)
            else:
                shutil.copy2(source, work / name)


def material(place: Path, trees: dict[str, Path], archives: dict[str, Path]) -> Material:
    """Make the files in the directory `place`; `trees` and `archives` by architecture."""
    shared = place / "shared"
    shared.mkdir()
    found = debian.sources(("lua5.4", "fmtlib", "zlib"))
    for name, description in (("lua", "lua5.4"), ("fmt", "fmtlib"), ("zlib", "zlib")):
        unpack(found[description], shared / name)
    _pack(shared / "small.tar", 6_000_000, [shared / name for name in ("lua", "fmt", "zlib")])
    native = trees["amd64"]
    _pack(shared / "large.tar", 60_000_000, [native / "usr/lib/gcc", native / "usr/include"])
    with lzma.open(shared / "large.tar.xz", "wb", preset=1) as out:
        out.write((shared / "large.tar").read_bytes())
    own = {}
    for architecture, archive in archives.items():
        own[architecture] = place / architecture
        (own[architecture] / "debs").mkdir(parents=True)
        for name in UNPACKED:
            (file,) = archive.glob(f"pool/main/*/{name}/{name}_*.deb")
            shutil.copy2(file, own[architecture] / "debs")
    return Material(shared, own)


def unpack(description: Path, into: Path) -> None:
    """The upstream files of a source package, without the directory they are in."""
    stem = description.name.rpartition("-")[0]
    (original,) = (
        file
        for file in description.parent.glob(f"{stem}.orig.tar.*")
        if file.suffix in (".gz", ".xz", ".bz2")
    )
    into.mkdir()
    command = ["tar", "-x", "--strip-components=1", "-f", str(original), "-C", str(into)]
    subprocess.run(command, check=True)


def _pack(archive: Path, size: int, directories: Sequence[Path]) -> None:
    """A tar archive of some of the files below the directories, of about `size` bytes."""
    with tarfile.open(archive, "w") as out:
        for directory in directories:
            for file in sorted(directory.rglob("*")):
                if file.is_file() and not file.is_symlink() and out.offset < size:
                    out.add(file, f"{directory.name}/{file.relative_to(directory)}")
