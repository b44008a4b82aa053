"""Shells, make and m4: what a build's scripts run on.

They do integer arithmetic and move text. bash and make have the machine's name compiled in
($MACHTYPE, $(MAKE_HOST), --version): respell.py puts the foreign one's there, and for make the
directory in which it looks for libraries.
"""

from __future__ import annotations

from maid.acceleration import records
from maid.acceleration.basics import LOCALE, USERS
from maid.acceleration.model import Need, Tool
from maid.acceleration.respell import answers, respelled

SHIM = "libmaid-shim.so"

# Names of hosts come from files and from DNS, which glibc does by itself; any other source is a
# module, and a foreign one cannot be loaded into a native program (nsswitch.conf(5)).
HOSTS = tuple(
    records.exists(f"/usr/lib/{{gnu}}/libnss_{module}.so.2")
    for module in (
        "mdns4_minimal",
        "mdns4",
        "mdns",
        "myhostname",
        "mymachines",
        "resolve",
        "libvirt",
    )
)

_HOST = ("x86_64-pc-linux-gnu", "{cpu}-unknown-linux-gnu")
"""config.guess's names of the machine."""

TOOLS = (
    Tool(
        "dash",
        "dash",
        "/usr/bin/dash",
        "its arithmetic is in 64-bit integers, and what printf converts is a double",
        rules=(*LOCALE, *USERS),
        needs=Need.SIGNALS,
        # The least integer divided by -1, which dash does not check for, is an exception on x86 and
        # s390x, and nothing in particular on POWER.
        foreign=("arm64", "riscv64", "loong64", "armhf", "armel"),
        patches=(answers("/usr/bin/dash", division="wraps"),),
        preload=SHIM,
    ),
    Tool(
        "bash",
        "bash",
        "/usr/bin/bash",
        "its arithmetic is in 64-bit integers; long doubles and the machine's names are put right",
        rules=(*LOCALE, *USERS, *HOSTS),
        needs=Need.ALL,
        foreign=("arm64", "riscv64"),
        patches=(
            respelled(
                "/usr/bin/bash",
                [_HOST, ("\0x86_64\0", "\0{cpu}\0")],
                quad="113",
                modules="",
            ),
        ),
        preload=SHIM,
    ),
    Tool(
        "make",
        "make",
        "/usr/bin/make",
        "it runs commands and compares times; what it knows of the machine is put right",
        rules=(*LOCALE, *USERS),
        needs=Need.ALL,
        patches=(respelled("/usr/bin/make", [_HOST, ("{native}", "{gnu}")]),),
        preload=SHIM,
    ),
    Tool(
        "m4",
        "m4",
        "/usr/bin/m4",
        "eval is defined as 32-bit arithmetic, all else is text",
        rules=LOCALE,
        needs=Need.SIGNALS,
    ),
)
"""All of them."""
