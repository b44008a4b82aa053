/* SPDX-License-Identifier: Apache-2.0 */
/*
 * front_calls.h - the few system calls that the front makes
 *
 * Numbers and structures are the kernel's own (uapi/asm/unistd.h, stat.h,
 * fcntl.h), written out so that any compiler for the machine will do; the
 * tests compare them with the kernel's headers. Every call returns what the
 * kernel does: a negative error number on failure.
 */
#ifndef MAID_FRONT_CALLS_H
#define MAID_FRONT_CALLS_H

#include "front.h"

#if defined(__x86_64__)
#define NR_close	3
#define NR_fcntl	72
#define NR_execve	59
#define NR_fstat	5
#define NR_newfstatat	262
#define NR_openat	257
#define NR_pread64	17
#define NR_prlimit64	302
#define NR_write	1
#define O_NOFOLLOW	0400000
#elif defined(__aarch64__)
#define NR_close	57
#define NR_fcntl	25
#define NR_execve	221
#define NR_fstat	80
#define NR_newfstatat	79
#define NR_openat	56
#define NR_pread64	67
#define NR_prlimit64	261
#define NR_write	64
#define O_NOFOLLOW	0100000
#else
#error "the front is written for x86-64 and AArch64"
#endif

#define AT_FDCWD		(-100)
#define AT_SYMLINK_NOFOLLOW	0x100
#define FD_CLOEXEC		1
#define F_SETFD			2
#define O_RDONLY		0
#define O_WRONLY		01
#define O_NOCTTY		0400
#define O_APPEND		02000
#define O_NONBLOCK		04000
#define O_CLOEXEC		02000000
#define RLIMIT_FSIZE		1
#define RLIM_INFINITY		(~0ULL)
#define S_IFMT			0170000
#define S_IFDIR			0040000
#define S_IFREG			0100000

/* struct stat as the kernel writes it; what the front does not use has no name. */
struct status {
	uint64_t device;
	uint64_t inode;
#if defined(__x86_64__)
	uint64_t links;
	uint32_t mode;
	uint32_t other[5];
#else
	uint32_t mode;
	uint32_t other[7];
#endif
	int64_t size;
	uint64_t rest[11];
};

struct limit {
	uint64_t soft;
	uint64_t hard;
};

static inline long call(long number, word a, word b, word c, word d)
{
#if defined(__x86_64__)
	long result;
	register word r10 __asm__("r10") = d;

	__asm__ volatile("syscall" : "=a"(result)
			 : "0"(number), "D"(a), "S"(b), "d"(c), "r"(r10)
			 : "rcx", "r11", "memory");
	return result;
#else
	register long x8 __asm__("x8") = number;
	register word x0 __asm__("x0") = a;
	register word x1 __asm__("x1") = b;
	register word x2 __asm__("x2") = c;
	register word x3 __asm__("x3") = d;

	__asm__ volatile("svc #0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3) : "memory");
	return (long)x0;
#endif
}

static inline int call_open(const char *path, int flags)
{
	return (int)call(NR_openat, (word)AT_FDCWD, (word)path, (word)flags, 0);
}

static inline void call_close(int file)
{
	call(NR_close, (word)file, 0, 0, 0);
}

/* Returns whether it could be asked. */
static inline int call_stat(const char *path, int flags, struct status *status)
{
	return call(NR_newfstatat, (word)AT_FDCWD, (word)path, (word)status, (word)flags) == 0;
}

static inline int call_fstat(int file, struct status *status)
{
	return call(NR_fstat, (word)file, (word)status, 0, 0) == 0;
}

static inline long call_pread(int file, void *buffer, size_t size, uint64_t offset)
{
	return call(NR_pread64, (word)file, (word)buffer, size, offset);
}

/* Opens the regular file that @path names; returns -1 for everything else, at once. */
static inline int open_regular(const char *path, int flags, struct status *status)
{
	int file = call_open(path, flags | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);

	if (file < 0)
		return -1;
	if (call_fstat(file, status) && (status->mode & S_IFMT) == S_IFREG)
		return file;
	call_close(file);
	return -1;
}

#endif
