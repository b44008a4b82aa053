"""Being told when an instance changes, without polling: its table, and whether it is mounted at
all.

inotify tells of registrations, switches and removals, also through another mount of the same
instance; the mount table's file tells of mounts and unmounts (facts/kernel.md, measured on 6.18).
Holds one more mount of the instance, because a table dies with its last one. Decides nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import select
from collections.abc import Callable

from maid import kernel
from maid.binfmt.instance import Instance

log = logging.getLogger(__name__)


class Watch:
    """Calls `changed` with a word on what happened, whenever `instance` may have changed."""

    def __init__(self, instance: Instance, changed: Callable[[str], None]) -> None:
        self._instance = instance
        self._changed = changed
        self._table = -1
        self._spare = -1
        self._mount_table = os.open("/proc/self/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
        # mountinfo is always readable; only its exceptional condition says that it changed.
        self._mounts = select.epoll()
        self._mounts.register(self._mount_table, select.EPOLLPRI)
        asyncio.get_running_loop().add_reader(self._mounts.fileno(), self._on_mounts)
        self.renew()

    @property
    def active(self) -> bool:
        """Whether the table is watched: not, when it was not mounted or was unmounted since."""
        return self._table >= 0

    def renew(self) -> None:
        """Watch the table that is mounted now."""
        self._drop_table()
        try:
            self._table = self._instance.watch()
        except OSError as error:
            log.warning("%s cannot be watched: %s", self._instance.path, error)
            return
        asyncio.get_running_loop().add_reader(self._table, self._on_table)
        self._drop_spare()
        # A detached mount, which nobody can unmount: it keeps the entries alive.
        with contextlib.suppress(OSError):
            self._spare = kernel.clone_tree(self._instance.path)

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
        if not self.active or not self._instance.mounted():
            self._changed("the mounts changed")

    def _drop_table(self) -> None:
        if self._table >= 0:
            asyncio.get_running_loop().remove_reader(self._table)
            os.close(self._table)
            self._table = -1

    def _drop_spare(self) -> None:
        if self._spare >= 0:
            os.close(self._spare)
            self._spare = -1
