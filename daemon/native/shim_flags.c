// SPDX-License-Identifier: Apache-2.0
/*
 * shim_flags.c - constants that perl passes on from its scripts with the foreign machine's values
 *
 * Part of libmaid-shim.so (shim.c). perl's Fcntl and POSIX answer with the foreign machine's
 * numbers (maid/acceleration/respell.py), which scripts give to sysopen, fcntl and fesetround; here
 * they become the host's again.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "shim.h"

/*
 * The flags of open(2) that AArch64 has elsewhere than x86 (<asm/fcntl.h>): O_DIRECTORY and
 * O_NOFOLLOW change places with O_DIRECT and O_LARGEFILE.
 */
static int exchanged(int flags)
{
	return (flags & ~0x3c000) | (flags & 0xc000) << 2 | (flags & 0x30000) >> 2;
}

/* Whether the call comes from what passes on the numbers that a perl script gave it. */
static int has_foreign_flags(const void *caller)
{
	Dl_info info;
	const char *name;

	if (!setting("flags") || !dladdr(caller, &info) || !info.dli_fname)
		return 0;
	name = strrchr(info.dli_fname, '/');
	return !strcmp(name ? name + 1 : info.dli_fname, "POSIX.so") ||
	       (uintptr_t)info.dli_fbase == (getauxval(AT_PHDR) & -4096ul);
}

EXPORT int open64(const char *path, int flags, ...)
{
	va_list arguments;
	mode_t mode = 0;

	va_start(arguments, flags);
	if (flags & (O_CREAT | 020000000))	/* O_CREAT, __O_TMPFILE */
		mode = va_arg(arguments, mode_t);
	va_end(arguments);
	if (has_foreign_flags(__builtin_return_address(0)))
		flags = exchanged(flags);
	if (flags & (O_CREAT | O_TRUNC))
		has_effects = 1;
	return syscall(SYS_openat, AT_FDCWD, path, flags, mode);
}

EXPORT int fcntl64(int fd, int command, ...)
{
	int foreign = has_foreign_flags(__builtin_return_address(0)), result;
	static int (*usual)(int, int, ...);
	va_list arguments;
	void *argument;

	va_start(arguments, command);
	argument = va_arg(arguments, void *);
	va_end(arguments);
	if (!usual)
		usual = dlsym(RTLD_NEXT, "fcntl64");
	if (foreign && command == F_SETFL)
		argument = (void *)(intptr_t)exchanged((int)(intptr_t)argument);
	result = usual(fd, command, argument);
	/* QEMU does not pass on the O_LARGEFILE that the kernel adds (0100000 on x86-64). */
	return foreign && command == F_GETFL && result >= 0 ? exchanged(result & ~0100000) : result;
}

#if defined(__x86_64__)

/* Directions of rounding: x86's own, and in the same order those of "rounding=" machines. */
static const int DIRECTIONS[3][4] = {
	{ 0, 0x400, 0x800, 0xc00 },
	{ 0, 0x800000, 0x400000, 0xc00000 },	/* arm64 */
	{ 0, 2, 3, 1 },				/* riscv64 */
};

static int direction(int value, int back)
{
	const char *machine = setting("rounding");
	const int *own = DIRECTIONS[0], *other = own;

	if (machine)
		other = DIRECTIONS[!strcmp(machine, "arm64") ? 1 : 2];
	for (int i = 0; i < 4; i++)
		if ((back ? own : other)[i] == value)
			return (back ? other : own)[i];
	return -1;
}

EXPORT int fesetround(int value)
{
	static int (*usual)(int);

	if (!usual)
		usual = dlsym(RTLD_NEXT, "fesetround");
	return usual(direction(value, 0));
}

EXPORT int fegetround(void)
{
	static int (*usual)(void);

	if (!usual)
		usual = dlsym(RTLD_NEXT, "fegetround");
	return direction(usual(), 1);
}

#endif
