#!/usr/bin/env python3
"""private-binfmt.py INTERPRETER CMD…: run CMD as root of a namespace with its own binfmt table.

INTERPRETER serves riscv64 in it if it is named qemu-riscv64 or qemu-riscv64-static, else arm64: the
architectures that root file systems are configured for. It serves the making of root file systems,
before maid itself is installed; so it needs nothing but Python. The host's table is not touched:
the namespace mounts its own one first, or this stops. Root only (all ids are mapped), Linux 6.7 or
newer (older kernels have one table and refuse the mount).
"""

import ctypes
import os
import sys
from pathlib import Path

CLONE_NEWNS, CLONE_NEWUSER = 0x20000, 0x10000000  # <linux/sched.h>
MS_REC, MS_PRIVATE = 1 << 14, 1 << 18  # <linux/mount.h>
TABLE = "/proc/sys/fs/binfmt_misc"

# 64-bit little-endian ELF (any ABI byte), ET_EXEC or ET_DYN: as QEMU's binfmt.d has it, but for
# e_machine, which ends it.
MAGIC = bytes.fromhex("7f454c460201010000000000000000000200")
MACHINES = {"aarch64": 0xB7, "riscv64": 0xF3}  # <elf.h>
MASK = bytes.fromhex("ffffffffffffff00fffffffffffffffffeffffff")
FLAGS = "FPOC"  # open now (works in a chroot), keep argv[0], setuid programs work

libc = ctypes.CDLL(None, use_errno=True)


def check(result: int, what: str) -> None:
    """Raise OSError with the C library's errno where a call returned a negative result."""
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{what}: {os.strerror(error)}")


def escaped(data: bytes) -> bytes:
    """Return data as the kernel's register line wants bytes: \\xNN for each."""
    return b"".join(b"\\x%02x" % byte for byte in data)


def enter(interpreter: str, unshared: int, mapped: int) -> None:
    """Become root of the namespace: tell `unshared`, wait for the ids on `mapped`, register."""
    target = "riscv64" if Path(interpreter).name.startswith("qemu-riscv64") else "aarch64"
    magic = MAGIC + MACHINES[target].to_bytes(2, "little")
    check(libc.unshare(CLONE_NEWUSER | CLONE_NEWNS), "unshare")
    os.write(unshared, b"x")
    os.read(mapped, 1)
    check(libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None), "make / private")
    check(
        libc.mount(b"binfmt_misc", TABLE.encode(), b"binfmt_misc", 0, None),
        "mount a binfmt_misc of the namespace's own (Linux 6.7 or newer)",
    )
    with open(f"{TABLE}/register", "wb", buffering=0) as register:
        fields = (target.encode(), b"M", b"", escaped(magic), escaped(MASK), interpreter.encode())
        register.write(b":" + b":".join(fields) + b":" + FLAGS.encode())


def main() -> int:
    """Run the command and return its exit status (128+N for a signal)."""
    interpreter, *command = sys.argv[1:]
    (unshared, tell_unshared), (mapped, tell_mapped) = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        try:
            enter(interpreter, tell_unshared, mapped)
            os.execvp(command[0], command)
        except OSError as error:
            print(f"private-binfmt.py: {error}", file=sys.stderr)
            os._exit(125)
    # Without these the end of the child would not end the wait for it.
    os.close(tell_unshared)
    os.close(mapped)
    if os.read(unshared, 1):
        for kind in ("uid", "gid"):
            with open(f"/proc/{child}/{kind}_map", "w") as file:
                file.write("0 0 4294967295")
        os.write(tell_mapped, b"x")
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(main())
