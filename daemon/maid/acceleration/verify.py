"""Compare what two runs of one step made of the same root file system.

A run's changes lie in an overlay's upper directory, so each of the two trees is what the overlay
shows: the upper directory before the lower one, less what was removed. Everything that either run
touched is compared by what a program could see of it, but for times and inode numbers. Pure
functions of what is on disk; running the steps is cli/verify.py's.

An overlay notes in extended attributes of its own (trusted.overlay.*) which directories hide what
is below them. Only root can read those; for anybody else a directory that was removed and made
again still shows what was in it, in both trees.
"""

from __future__ import annotations

import os
import stat
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase

_OVERLAY = ("trusted.overlay.", "user.overlay.")
_PIECE = 1 << 20

_KINDS = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symbolic link",
    stat.S_IFIFO: "FIFO",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
}


@dataclass(frozen=True)
class Tree:
    """A root file system after a run: `upper` and `lower` are the overlay's directories. Nothing
    may write to them meanwhile."""

    upper: str
    lower: str


@dataclass(frozen=True)
class Difference:
    """`path` as a program in the root file system names it; `attribute` is one of type, content,
    mode, owner, target (of a symbolic link), device, links (which paths are hard links of it),
    xattr NAME, unreadable, and for the command itself (path "") status, stdout, stderr. `first`
    and `second` are what the two runs have, in words."""

    path: str
    attribute: str
    first: str
    second: str

    @property
    def key(self) -> tuple[str, str]:
        """What differs, whatever it is like."""
        return self.path, self.attribute


@dataclass(frozen=True)
class _Node:
    """One file of a tree: where it lies in the upper directory, in the lower one, or both (a
    directory that is in both shows what is in both)."""

    upper: str | None
    lower: str | None

    @property
    def path(self) -> str:
        found = self.upper or self.lower
        assert found is not None
        return found


def compare(first: Tree, second: Tree) -> list[Difference]:
    """Every difference between the two trees, by path. Raises OSError when a directory cannot be
    read."""
    found: list[Difference] = []
    links: tuple[_Links, _Links] = (_Links(), _Links())
    for path, nodes in _pairs(first, second):
        for node, known in zip(nodes, links, strict=True):
            if node is not None:
                known.note(path, node)
        found += _differences(path, *nodes)
    found += _link_differences(*links)
    return sorted(found, key=lambda difference: difference.key)


def where_files_differ(first: str, second: str) -> str:
    """ "" for the same bytes, else "bytes, different from byte N on"."""
    descriptors = [
        os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        for path in (first, second)
    ]
    offset = 0
    try:
        while True:
            one, other = (os.pread(descriptor, _PIECE, offset) for descriptor in descriptors)
            if one != other:
                pairs = zip(one, other, strict=False)
                same = next((i for i, (a, b) in enumerate(pairs) if a != b), None)
                at = offset + (min(len(one), len(other)) if same is None else same)
                return f"bytes, different from byte {at} on"
            if not one:
                return ""
            offset += len(one)
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def without(differences: Iterable[Difference], globs: Iterable[str]) -> list[Difference]:
    """Those whose path none of the patterns matches (fnmatch(3), where * matches a / too)."""
    patterns = list(globs)
    return [
        difference
        for difference in differences
        if not any(fnmatchcase(difference.path, pattern) for pattern in patterns)
    ]


def apart(
    differences: Iterable[Difference], between_equals: Iterable[Difference]
) -> tuple[list[Difference], list[Difference]]:
    """The differences that count, and those that `between_equals`, two runs of the very same step,
    have too: what varies by itself says nothing."""
    varying = {difference.key for difference in between_equals}
    count = [difference for difference in differences if difference.key not in varying]
    return count, [difference for difference in differences if difference.key in varying]


# Walking ----------------------------------------------------------------------------------------


def _pairs(first: Tree, second: Tree) -> Iterator[tuple[str, tuple[_Node | None, _Node | None]]]:
    """Every path that either run may have touched, with its file in both trees."""
    waiting: list[tuple[str, tuple[_Node | None, _Node | None]]] = [
        ("/", (_Node(first.upper, first.lower), _Node(second.upper, second.lower)))
    ]
    while waiting:
        path, nodes = waiting.pop()
        yield path, nodes
        children = [
            _children(tree, node) if node is not None and _is_directory(node.path) else {}
            for tree, node in zip((first, second), nodes, strict=True)
        ]
        for name in {**children[0], **children[1]}:
            pair = children[0].get(name), children[1].get(name)
            if pair[0] is None or pair[0].upper is not None or pair[0] != pair[1]:
                waiting.append((os.path.join(path, name), pair))


def _children(tree: Tree, node: _Node) -> dict[str, _Node]:
    """What a directory of the tree shows."""
    shown: dict[str, _Node] = {}
    if node.lower is not None:
        for name in os.listdir(node.lower):
            shown[name] = _Node(None, f"{node.lower}/{name}")
    if node.upper is not None:
        for name in os.listdir(node.upper):
            below, path = shown.pop(name, None), f"{node.upper}/{name}"
            if not _is_whiteout(path):
                shown[name] = _Node(path, _behind(tree, node, path, below))
    return shown


def _behind(tree: Tree, parent: _Node, upper: str, below: _Node | None) -> str | None:
    """The lower directory that the upper directory `upper` is merged with, if it is."""
    if not _is_directory(upper) or _overlay_attribute(upper, "opaque") == b"y":
        return None
    redirect = _overlay_attribute(upper, "redirect")
    if redirect is None:
        lower = below.lower if below is not None else None
    elif redirect.startswith(b"/"):
        lower = _inside(tree.lower, os.fsdecode(redirect))
    else:
        lower = _inside(parent.lower, os.fsdecode(redirect)) if parent.lower else None
    return lower if lower is not None and _is_directory(lower) else None


def _inside(directory: str, path: str) -> str | None:
    """`path` below `directory`; None if a part of it is no directory itself."""
    for name in path.split("/"):
        if name in ("", "."):
            continue
        directory = f"{directory}/{name}"
        if name == ".." or not _is_directory(directory):
            return None
    return directory


def _is_directory(path: str) -> bool:
    try:
        return stat.S_ISDIR(os.lstat(path).st_mode)
    except FileNotFoundError:
        return False


def _is_whiteout(path: str) -> bool:
    """Whether it says that there is nothing (kernel: Documentation/filesystems/overlayfs.rst)."""
    found = os.lstat(path)
    return stat.S_ISCHR(found.st_mode) and found.st_rdev == 0


def _overlay_attribute(path: str, name: str) -> bytes | None:
    for prefix in _OVERLAY:
        try:
            return os.getxattr(path, prefix + name, follow_symlinks=False)
        except OSError:
            continue
    return None


# One file ---------------------------------------------------------------------------------------


def _differences(path: str, first: _Node | None, second: _Node | None) -> Iterator[Difference]:
    if first is None or second is None:
        kinds = [_kind(os.lstat(node.path)) if node else "absent" for node in (first, second)]
        yield Difference(path, "type", *kinds)
        return
    if first == second and first.upper is None:
        return
    one, other = os.lstat(first.path), os.lstat(second.path)
    if _kind(one) != _kind(other):
        yield Difference(path, "type", _kind(one), _kind(other))
        return
    modes = stat.S_IMODE(one.st_mode), stat.S_IMODE(other.st_mode)
    if modes[0] != modes[1]:
        yield Difference(path, "mode", f"{modes[0]:04o}", f"{modes[1]:04o}")
    owners = [f"{found.st_uid}:{found.st_gid}" for found in (one, other)]
    if owners[0] != owners[1]:
        yield Difference(path, "owner", *owners)
    if one.st_rdev != other.st_rdev:
        devices = [f"{os.major(d)}:{os.minor(d)}" for d in (one.st_rdev, other.st_rdev)]
        yield Difference(path, "device", *devices)
    if stat.S_ISLNK(one.st_mode):
        targets = os.readlink(first.path), os.readlink(second.path)
        if targets[0] != targets[1]:
            yield Difference(path, "target", *targets)
    try:
        if stat.S_ISREG(one.st_mode) and (where := where_files_differ(first.path, second.path)):
            yield Difference(path, "content", f"{one.st_size} bytes", f"{other.st_size} {where}")
        yield from _attribute_differences(path, first.path, second.path)
    except PermissionError as error:
        yield Difference(path, "unreadable", str(error.strerror), str(error.strerror))


def _kind(found: os.stat_result) -> str:
    return _KINDS[stat.S_IFMT(found.st_mode)]


def _attribute_differences(path: str, first: str, second: str) -> Iterator[Difference]:
    one, other = _attributes(first), _attributes(second)
    for name in sorted({**one, **other}):
        if one.get(name) != other.get(name):
            values = [
                repr(value) if (value := a.get(name)) is not None else "absent"
                for a in (one, other)
            ]
            yield Difference(path, f"xattr {name}", *values)


def _attributes(path: str) -> dict[str, bytes]:
    return {
        name: os.getxattr(path, name, follow_symlinks=False)
        for name in os.listxattr(path, follow_symlinks=False)
        if not name.startswith(_OVERLAY)
    }


# Hard links -------------------------------------------------------------------------------------


class _Links:
    """Which paths of a tree are one file. What lies in the lower directory was there before."""

    def __init__(self) -> None:
        self._groups: dict[tuple[int, int], list[str]] = defaultdict(list)
        self._inodes: dict[str, tuple[int, int]] = {}

    def note(self, path: str, node: _Node) -> None:
        found = os.lstat(node.path)
        if not stat.S_ISDIR(found.st_mode):
            self._inodes[path] = inode = (found.st_dev, found.st_ino)
            self._groups[inode].append(path)

    def of(self, path: str) -> list[str] | None:
        """The paths that are this file too; None when there is no such path."""
        inode = self._inodes.get(path)
        if inode is None:
            return None
        return sorted(other for other in self._groups[inode] if other != path)

    def paths(self) -> Iterable[str]:
        return self._inodes


def _link_differences(first: _Links, second: _Links) -> Iterator[Difference]:
    for path in first.paths():
        one, other = first.of(path), second.of(path)
        if one is not None and other is not None and one != other:
            yield Difference(path, "links", *(", ".join(each) or "none" for each in (one, other)))
