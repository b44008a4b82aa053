"""What is said of the native store: in a few numbers for the status, and in full.

The values go over the socket and into `--json` as they are, so annotations stay real objects here.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from maid.acceleration.manager import Acceleration
from maid.acceleration.sets import Manifest
from maid.acceleration.tools import TOOLS


@dataclass(frozen=True)
class StoreSummary:
    """The store in short: `path` its directory, or null with the `problem`; `sets`, `tools` (builds
    of programs that have a native one) and `emulated` (programs of the same packages that stay
    emulated) are counts; `size` and `limit` bytes, 0 for no limit; `filling` what is being fetched,
    or null; `reasons` why steps were not accelerated, the newest last."""

    path: str | None
    problem: str | None
    sets: int
    tools: int
    emulated: int
    size: int
    limit: int
    filling: str | None
    reasons: list[str]


@dataclass(frozen=True)
class StoreTool:
    """A program that has a native one: `path` in the root file system, of which `package` and
    `version`, what stands in, and in `why` the reason why its output cannot depend on the
    machine."""

    tool: str
    path: str
    package: str
    version: str
    native_package: str
    native_version: str
    build_id: str
    why: str


@dataclass(frozen=True)
class StoreLeft:
    """A program that stays emulated, and why."""

    tool: str
    package: str
    version: str
    reason: str


@dataclass(frozen=True)
class StoreSet:
    """The tools of one release for one foreign architecture, as Debian names them; `made` and
    `used` in seconds since 1970 (0: never), `packages` are what it was made from."""

    name: str
    release: str
    native: str
    foreign: str
    made: float
    used: float
    size: int
    mirror: str
    packages: list[str]
    tools: list[StoreTool]
    left: list[StoreLeft]


@dataclass(frozen=True)
class StoreContent:
    """All of it: the summary and the sets."""

    summary: StoreSummary
    sets: list[StoreSet]


def summary(acceleration: Acceleration, told: Iterable[str]) -> StoreSummary:
    """The store in short; `told` are the reasons why steps were not accelerated."""
    status = acceleration.status()
    return StoreSummary(
        path=status.path or None,
        problem=status.problem or None,
        sets=len(status.sets),
        tools=sum(len(each.entries) for each in status.sets),
        emulated=sum(len(each.left) for each in status.sets),
        size=status.size,
        limit=status.limit,
        filling=status.filling or None,
        reasons=list(dict.fromkeys((*told, *status.failures))),
    )


def content(acceleration: Acceleration, told: Iterable[str]) -> StoreContent:
    """All that there is to say."""
    sets = [one_set(each, acceleration.last_used(each.name)) for each in acceleration.status().sets]
    return StoreContent(summary(acceleration, told), sets)


def one_set(manifest: Manifest, used: float) -> StoreSet:
    """A set as it is told."""
    return StoreSet(
        name=manifest.name,
        release=f"{manifest.distribution}:{manifest.codename}",
        native=manifest.native,
        foreign=manifest.foreign,
        made=manifest.made,
        used=used,
        size=manifest.size,
        mirror=manifest.mirror,
        packages=manifest.packages,
        tools=[
            StoreTool(
                tool=entry.tool,
                path=entry.path,
                package=entry.package,
                version=entry.version,
                native_package=entry.native_package,
                native_version=entry.native_version,
                build_id=entry.build_id,
                why=_WHY.get(entry.tool, ""),
            )
            for entry in manifest.entries
        ],
        left=[StoreLeft(e.tool, e.package, e.version, e.reason) for e in manifest.left],
    )


_WHY = {tool.name: tool.why for tool in TOOLS}
