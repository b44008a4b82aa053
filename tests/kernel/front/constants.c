// SPDX-License-Identifier: Apache-2.0
/* constants.c - compiles only if the front's idea of the kernel's interface is the kernel's */
#include "../../../daemon/native/front_calls.h"

#define KEEP(name) front_##name = name
enum {
	KEEP(NR_close), KEEP(NR_fcntl), KEEP(NR_execve), KEEP(NR_fstat), KEEP(NR_newfstatat),
	KEEP(NR_openat), KEEP(NR_pread64), KEEP(NR_prlimit64), KEEP(NR_write),
	KEEP(O_RDONLY), KEEP(O_WRONLY), KEEP(O_NOCTTY), KEEP(O_APPEND), KEEP(O_NONBLOCK),
	KEEP(O_CLOEXEC), KEEP(O_NOFOLLOW),
	KEEP(AT_FDCWD), KEEP(AT_SYMLINK_NOFOLLOW), KEEP(FD_CLOEXEC), KEEP(F_SETFD),
	KEEP(RLIMIT_FSIZE), KEEP(S_IFMT), KEEP(S_IFDIR), KEEP(S_IFREG),
	KEEP(AT_NULL), KEEP(AT_EXECFD), KEEP(AT_FLAGS), KEEP(AT_UID), KEEP(AT_EUID),
	KEEP(AT_GID), KEEP(AT_EGID), KEEP(AT_SECURE), KEEP(AT_FLAGS_PRESERVE_ARGV0),
};
static const uint64_t front_infinity = RLIM_INFINITY;

#undef O_RDONLY
#undef O_WRONLY
#undef O_NOCTTY
#undef O_APPEND
#undef O_NONBLOCK
#undef O_CLOEXEC
#undef O_NOFOLLOW
#undef AT_FDCWD
#undef AT_SYMLINK_NOFOLLOW
#undef FD_CLOEXEC
#undef F_SETFD
#undef RLIMIT_FSIZE
#undef RLIM_INFINITY
#undef S_IFMT
#undef S_IFDIR
#undef S_IFREG
#undef AT_NULL
#undef AT_EXECFD
#undef AT_FLAGS
#undef AT_UID
#undef AT_EUID
#undef AT_GID
#undef AT_EGID
#undef AT_SECURE
#undef AT_FLAGS_PRESERVE_ARGV0
/* With glibc, <linux/stat.h> leaves the modes to <sys/stat.h>. */
#undef __GLIBC__
#include <asm/stat.h>
#include <asm/unistd.h>
#include <linux/auxvec.h>
#include <linux/binfmts.h>
#include <linux/fcntl.h>
#include <linux/resource.h>
#include <linux/stat.h>

#define SAME(name) _Static_assert((long)front_##name == (long)(name), #name)
#define SAME_CALL(name) _Static_assert(front_NR_##name == __NR_##name, #name)
#define SAME_FIELD(ours, theirs) \
	_Static_assert(offsetof(struct status, ours) == offsetof(struct stat, theirs) && \
		       sizeof(((struct status *)0)->ours) == sizeof(((struct stat *)0)->theirs), \
		       #theirs)

SAME_CALL(close);
SAME_CALL(fcntl);
SAME_CALL(execve);
SAME_CALL(fstat);
SAME_CALL(newfstatat);
SAME_CALL(openat);
SAME_CALL(pread64);
SAME_CALL(prlimit64);
SAME_CALL(write);
SAME(O_RDONLY);
SAME(O_WRONLY);
SAME(O_NOCTTY);
SAME(O_APPEND);
SAME(O_NONBLOCK);
SAME(O_CLOEXEC);
SAME(O_NOFOLLOW);
SAME(AT_FDCWD);
SAME(AT_SYMLINK_NOFOLLOW);
SAME(FD_CLOEXEC);
SAME(F_SETFD);
SAME(RLIMIT_FSIZE);
SAME(S_IFMT);
SAME(S_IFDIR);
SAME(S_IFREG);
SAME(AT_NULL);
SAME(AT_EXECFD);
SAME(AT_FLAGS);
SAME(AT_UID);
SAME(AT_EUID);
SAME(AT_GID);
SAME(AT_EGID);
SAME(AT_SECURE);
SAME(AT_FLAGS_PRESERVE_ARGV0);
SAME_FIELD(device, st_dev);
SAME_FIELD(inode, st_ino);
SAME_FIELD(mode, st_mode);
SAME_FIELD(size, st_size);
_Static_assert(sizeof(struct status) >= sizeof(struct stat), "struct stat");
_Static_assert(sizeof(struct limit) == sizeof(struct rlimit64), "struct rlimit64");

int main(void)
{
	return front_infinity != RLIM64_INFINITY;
}
