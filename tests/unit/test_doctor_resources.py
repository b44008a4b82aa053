"""maid.doctor on programs and on what there is of memory, processes and space."""

import pytest
from doctoring import HYBRID, V1, Made, Trouble, cpuinfo, mounted, see, several, sysctl, version_1

from maid.config import Config, Steps
from maid.doctor import (
    programs,
    resources,
)

TROUBLES = [
    # Programs
    Trouble(
        "no OCI runtime",
        programs.runtimes,
        "problem",
        "there is no crun and no runc",
        "install crun",
        lambda made: made.remove("/usr/bin/crun"),
    ),
    Trouble(
        "configured OCI runtime",
        programs.runtimes,
        "problem",
        "there is no /opt/youki",
        "[steps] runtime",
        config=Config(steps=Steps(runtime="/opt/youki")),
    ),
    Trouble(
        "crun and hybrid cgroups",
        programs.runtimes,
        "note",
        "crun before 1.9 refuses hybrid cgroups",
        "--runtime runc",
        lambda made: made.write("/sys/fs/cgroup/unified/cgroup.procs", ""),
    ),
    # Resources
    Trouble(
        "hybrid cgroups",
        resources.cgroups,
        "note",
        "hybrid (v1 with a v2 tree beside it), limits for steps can be set",
        "unified_cgroup_hierarchy=1",
        lambda made: version_1(made, HYBRID),
    ),
    Trouble(
        "cgroups v1",
        resources.cgroups,
        "note",
        "v1, limits for steps can be set",
        "",
        version_1,
    ),
    Trouble(
        "cgroups v1 without memory",
        resources.cgroups,
        "warning",
        "v1, without memory",
        "cgroup_enable=memory",
        lambda made: version_1(made, V1.replace("rw,memory", "rw,pids")),
    ),
    Trouble(
        "cgroups v2, not delegated",
        resources.cgroups,
        "warning",
        "v2, without memory and cpu",
        "Delegate=yes",
        lambda made: made.write(
            "/sys/fs/cgroup/system.slice/maid.service/cgroup.controllers", "pids\n"
        ),
    ),
    Trouble(
        "no cgroups",
        resources.cgroups,
        "warning",
        "none are mounted",
        "mount -t cgroup2",
        several(
            lambda made: made.remove("/sys/fs/cgroup/cgroup.controllers"),
            mounted("", "21 1 8:1 / / rw - ext4 /dev/sda1 rw\n"),
        ),
    ),
    Trouble(
        "few open files",
        resources.limits,
        "warning",
        "256 open files",
        "LimitNOFILE",
        lambda made: made.replace("/proc/self/limits", "1024 ", "256  "),
    ),
    Trouble(
        "little address space",
        resources.limits,
        "warning",
        "limited to 4096 MiB",
        "LimitAS=infinity",
        lambda made: made.replace(
            "/proc/self/limits", "space         unlimited ", "space         4294967296"
        ),
    ),
    Trouble(
        "few processes",
        resources.limits,
        "warning",
        "500 processes",
        "ulimit -u",
        lambda made: made.replace("/proc/self/limits", "62803 ", "500   "),
    ),
    Trouble(
        "few process ids",
        resources.limits,
        "warning",
        "1000 processes",
        "pid_max",
        sysctl("kernel/pid_max", 1000),
    ),
    Trouble(
        "few inotify instances",
        resources.limits,
        "warning",
        "fs.inotify.max_user_instances is 8",
        "sysctl fs.inotify.max_user_instances",
        sysctl("fs/inotify/max_user_instances", 8),
    ),
    Trouble(
        "few inotify watches",
        resources.limits,
        "warning",
        "max_user_watches is 10",
        "sysctl fs.inotify.max_user_watches",
        sysctl("fs/inotify/max_user_watches", 10),
    ),
    Trouble(
        "little memory",
        resources.memory,
        "warning",
        "390 MiB are free",
        "swap",
        lambda made: made.write("/proc/meminfo", "MemAvailable: 400000 kB\n"),
    ),
    Trouble(
        "strict overcommit",
        resources.memory,
        "warning",
        "overcommit_memory is 2",
        "overcommit_memory=0",
        sysctl("vm/overcommit_memory", 2),
    ),
    Trouble(
        "high lowest address",
        resources.memory,
        "warning",
        "mmap_min_addr is 1048576",
        "mmap_min_addr=65536",
        sysctl("vm/mmap_min_addr", 1048576),
    ),
    Trouble(
        "wide randomisation",
        resources.randomisation,
        "note",
        "mmap_rnd_bits is 32",
        "mmap_rnd_bits=28",
        sysctl("vm/mmap_rnd_bits", 32),
    ),
    Trouble(
        "old processor",
        resources.processor,
        "warning",
        "x86-64-v2",
        "CPU model host",
        lambda made: made.write("/proc/cpuinfo", cpuinfo(1)),
    ),
    Trouble(
        "read-only state",
        resources.space,
        "problem",
        "/var/lib/maid is on a read-only file system (/var)",
        "[paths]",
        mounted("40 21 8:2 / /var ro - ext4 /dev/sda2 ro"),
    ),
    Trouble(
        "state mounted noexec",
        resources.space,
        "problem",
        "mounted noexec (/var/lib)",
        "[paths] state",
        mounted("40 21 8:2 / /var/lib rw,noexec - ext4 /dev/sda2 rw"),
    ),
    Trouble(
        "32-bit programs on ext4",
        resources.large_inodes,
        "note",
        "/var/lib/docker is on ext4",
        "tmpfs",
        lambda made: made.write("/var/lib/docker/.keep", ""),
    ),
]


@pytest.mark.parametrize("trouble", TROUBLES, ids=lambda trouble: trouble.name)
def test_each_trouble_is_seen(made: Made, trouble: Trouble) -> None:
    see(made, trouble)
