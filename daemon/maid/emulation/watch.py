"""Being told when an instance changes, without polling: its table, and whether it is mounted at
all.

inotify tells of registrations, switches and removals, also through another mount of the same
instance; the mount table's file tells of mounts and unmounts (facts/kernel.md, measured on 6.18).
On a kernel where inotify proves to be silent the table is read every few seconds instead. Holds one
more mount of the instance, because a table dies with its last one. Decides nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import select
from collections.abc import Callable

from maid import kernel
from maid.binfmt.entry import Entry
from maid.binfmt.instance import Instance

log = logging.getLogger(__name__)

SILENCE = 0.05
"""Seconds to wait for inotify to tell of a write; it takes microseconds."""

POLL = 5.0
"""Seconds between two looks at the table where inotify does not tell."""


class Watch:
    """Calls `changed` with a word on what happened, whenever `instance` may have changed."""

    def __init__(self, instance: Instance, changed: Callable[[str], None]) -> None:
        self._instance = instance
        self._changed = changed
        self._table = -1
        self._spare = -1
        self._device = -1
        self._timer: asyncio.TimerHandle | None = None
        self._read: tuple[bool, tuple[Entry, ...]] = (False, ())
        self._mount_table = os.open("/proc/self/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
        # mountinfo is always readable; only its exceptional condition says that it changed.
        self._mounts = select.epoll()
        self._mounts.register(self._mount_table, select.EPOLLPRI)
        asyncio.get_running_loop().add_reader(self._mounts.fileno(), self._on_mounts)
        self.renew()

    @property
    def active(self) -> bool:
        """Whether the table is watched: not, when it was not mounted or was unmounted since."""
        return self._table >= 0 or self._timer is not None

    def renew(self) -> None:
        """Watch the table that is mounted now."""
        self._drop_table()
        with contextlib.suppress(OSError):
            self._device = os.stat(self._instance.path).st_dev
        try:
            self._table = self._instance.watch()
        except OSError as error:
            log.warning("%s cannot be watched: %s", self._instance.path, error)
        if self._table < 0 or self._silent():
            self._read = self._entries()
            self._timer = asyncio.get_running_loop().call_later(POLL, self._poll)
        if self._table < 0:
            return
        asyncio.get_running_loop().add_reader(self._table, self._on_table)
        self._drop_spare()
        # A detached mount, which nobody can unmount: it keeps the entries alive.
        with contextlib.suppress(OSError):
            self._spare = kernel.clone_tree(self._instance.path)

    def _silent(self) -> bool:
        """Whether inotify tells nothing of a table that is being written to.

        Opening `register` to write and closing it is told as a write (measured on 6.18), and
        changes nothing.
        """
        with contextlib.suppress(OSError):
            os.close(os.open(f"{self._instance.path}/register", os.O_WRONLY | os.O_CLOEXEC))
        return not select.select([self._table], [], [], SILENCE)[0]

    def _poll(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(POLL, self._poll)
        now = self._entries()
        if now != self._read:
            self._read = now
            self._changed("the table was read")

    def _entries(self) -> tuple[bool, tuple[Entry, ...]]:
        return self._instance.enabled(), tuple(self._instance.entries().values())

    def close(self) -> None:
        """Watch no longer, and hold nothing."""
        self._drop_table()
        self._drop_spare()
        asyncio.get_running_loop().remove_reader(self._mounts.fileno())
        self._mounts.close()
        os.close(self._mount_table)

    def _on_table(self) -> None:
        gone = False
        for event in kernel.inotify_events(self._table):
            gone = gone or bool(event.mask & (kernel.IN_UNMOUNT | kernel.IN_IGNORED))
        if gone:
            self._drop_table()
        self._changed("the table changed")

    def _on_mounts(self) -> None:
        self._mounts.poll(0)  # takes the condition away
        if self._device != self._now_at():
            self._drop_table()  # another table came to light, or none
        if not self.active:
            self._changed("the mounts changed")

    def _now_at(self) -> int:
        """The device of the table that is mounted now; -1 when there is none."""
        if not self._instance.mounted():
            return -1
        return os.stat(self._instance.path).st_dev

    def _drop_table(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._table >= 0:
            asyncio.get_running_loop().remove_reader(self._table)
            os.close(self._table)
            self._table = -1

    def _drop_spare(self) -> None:
        if self._spare >= 0:
            os.close(self._spare)
            self._spare = -1
