#!/usr/bin/env python3
"""deny.py NUMBER[,NUMBER…] CMD…: run CMD on a kernel that does not know these system calls.

A seccomp filter answers them with ENOSYS, as an older kernel or a container's filter does.
"""

import ctypes
import errno
import os
import struct
import sys

# <linux/filter.h>, <linux/seccomp.h>, <linux/prctl.h>
LOAD, EQUAL, RETURN = 0x20, 0x15, 0x06
ALLOW, ERRNO = 0x7FFF0000, 0x00050000
PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 22, 2

numbers = [int(number) for number in sys.argv[1].split(",")]
program = struct.pack("=HBBI", LOAD, 0, 0, 0)  # the call's number is the first field
for left, number in zip(range(len(numbers) - 1, -1, -1), numbers, strict=True):
    program += struct.pack("=HBBI", EQUAL, left + 1, 0, number)
program += struct.pack("=HBBI", RETURN, 0, 0, ALLOW)
program += struct.pack("=HBBI", RETURN, 0, 0, ERRNO | errno.ENOSYS)
memory = ctypes.create_string_buffer(program)
filter_ = struct.pack("=HxxxxxxQ", len(program) // 8, ctypes.addressof(memory))
libc = ctypes.CDLL(None, use_errno=True)
if libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, filter_, 0, 0) < 0:
    sys.exit(f"deny.py: seccomp: {os.strerror(ctypes.get_errno())}")
os.execvp(sys.argv[2], sys.argv[2:])
