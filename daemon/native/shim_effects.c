// SPDX-License-Identifier: Apache-2.0
/*
 * shim_effects.c - whether a native tool has done anything that a second start would do again
 *
 * /proc/self/io counts what a process wrote with write(2), and its children show in getrusage(2)
 * (shim.c looks there). What else has effects outside the process, or stays with it through an
 * execve, is noted here: changes to names, modes, owners and times of files, connections, signals,
 * and reading from what cannot be read twice.
 *
 * The functions are passed through as they come. They are declared with as many words as any of
 * them takes: more than one takes does no harm in the calling conventions of x86-64 and AArch64.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stddef.h>
#include <sys/syscall.h>

#include "shim.h"

#define SEEK_CUR	1

long syscall(long number, ...);

int has_effects;

#define NOTED(name)							\
	long noted_##name(long a, long b, long c, long d, long e)	\
		__asm__(#name) EXPORT;					\
	long noted_##name(long a, long b, long c, long d, long e)	\
	{								\
		static long (*next)(long, long, long, long, long);	\
									\
		has_effects = 1;					\
		if (!next)						\
			next = dlsym(RTLD_NEXT, #name);			\
		return next(a, b, c, d, e);				\
	}

NOTED(unlink) NOTED(unlinkat) NOTED(rmdir) NOTED(rename) NOTED(renameat) NOTED(renameat2)
NOTED(mkdir) NOTED(mkdirat) NOTED(link) NOTED(linkat) NOTED(symlink) NOTED(symlinkat)
NOTED(mknod) NOTED(mknodat) NOTED(mkfifo) NOTED(chmod) NOTED(fchmod) NOTED(fchmodat)
NOTED(chown) NOTED(fchown) NOTED(lchown) NOTED(fchownat) NOTED(truncate) NOTED(truncate64)
NOTED(ftruncate) NOTED(ftruncate64) NOTED(utime) NOTED(utimes) NOTED(futimes) NOTED(futimens)
NOTED(utimensat) NOTED(chroot) NOTED(umask) NOTED(setpriority) NOTED(alarm) NOTED(kill)
NOTED(killpg) NOTED(bind) NOTED(connect) NOTED(recvfrom) NOTED(msgsnd) NOTED(msgrcv)
NOTED(semop) NOTED(shmat)

long noted_read(int fd, void *buffer, size_t size) __asm__("read") EXPORT;
long noted_read(int fd, void *buffer, size_t size)
{
	static long (*next)(int, void *, size_t);

	if (!has_effects) {
		int before = errno;

		/* A pipe, a socket, a terminal: what was read is gone. */
		if (syscall(SYS_lseek, fd, 0, SEEK_CUR) < 0)
			has_effects = 1;
		errno = before;
	}
	if (!next)
		next = dlsym(RTLD_NEXT, "read");
	return next(fd, buffer, size);
}
