/*
 * The places of a step's mounts in its root file system, made where they are missing.
 *
 * The runtime would make them as well, but with modes that nobody expects in a tree of files: crun 1.8
 * has 0700 for a file and 1755 for a directory. Here they are 0644 and 0755, as other engines leave
 * them. They stay when the step is over: to remove one would take the mount away from every other step
 * that runs in the same tree (since Linux 3.18 removing a mount point unmounts what is mounted on it
 * elsewhere).
 *
 * This is done as the step's root in the step's user namespace, so with no more power over files than
 * the caller has; links are followed within the root file system. What cannot be made is left to the
 * runtime, which has the words for it.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "step.h"

/* Of Linux 5.6. */
#ifndef SYS_openat2
#define SYS_openat2 437
#endif
#define NO_MAGIC_LINKS 0x02
#define IN_ROOT 0x10

struct how {
	uint64_t flags, mode, resolve;
};

static int open_in_root(int root, const char *path, int flags)
{
	struct how how = {
		.flags = O_PATH | O_CLOEXEC | flags,
		.resolve = IN_ROOT | NO_MAGIC_LINKS,
	};

	while (*path == '/')
		path++;
	return syscall(SYS_openat2, root, *path ? path : ".", &how, sizeof(how));
}

static int is_there(int root, const char *path)
{
	int found = open_in_root(root, path, 0);

	if (found >= 0)
		close(found);
	return found >= 0 || errno != ENOENT;
}

/* Make one place and the directories that lead to it. */
static void make_point(int root, const struct point *point)
{
	char path[4096];
	char *end = path, *next;
	int at, above = open_in_root(root, "/", O_DIRECTORY);

	if (above < 0 || snprintf(path, sizeof(path), "%s", point->path) >= (int)sizeof(path))
		return;
	for (;;) {
		while (*end == '/')
			end++;
		next = strchrnul(end, '/');
		if (point->is_file && !next[strspn(next, "/")]) {
			*next = 0;
			at = openat(above, end, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
			if (at >= 0)
				close(at);
			break;
		}
		if (!*end)
			break;
		char kept = *next;

		*next = 0;
		at = open_in_root(root, path, O_DIRECTORY);
		if (at < 0 && errno == ENOENT && mkdirat(above, end, 0755) == 0)
			at = open_in_root(root, path, O_DIRECTORY);
		*next = kept;
		close(above);
		above = at;
		if (at < 0)
			return;
		end = next;
	}
	close(above);
}

/* Become the root of the step's user namespace: the caller, to the kernel. */
static int become_root(const struct step *step)
{
	if (step->user < 0)
		return 0;
	/* Where the caller's groups count they are ours already (take_groups). */
	if (!step->keeps_groups && setgroups(0, NULL) < 0)
		return -1;
	if (setns(step->user, CLONE_NEWUSER) < 0)
		return -1;
	if (setresgid(0, 0, 0) < 0 || setresuid(0, 0, 0) < 0)
		return -1;
	return 0;
}

void make_points(const struct step *step)
{
	int root = open(below("rootfs"), O_PATH | O_DIRECTORY | O_CLOEXEC), i, missing = 0;
	pid_t child;

	if (root < 0)
		fail("rootfs");
	for (i = 0; i < step->point_count; i++)
		missing += !is_there(root, step->points[i].path);
	if (missing) {
		child = fork();
		if (child < 0)
			fail("fork");
		if (child == 0) {
			if (become_root(step) < 0)
				_exit(1);
			/* After the ids, whose change takes it back. */
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			umask(022);
			for (i = 0; i < step->point_count; i++)
				make_point(root, &step->points[i]);
			_exit(0);
		}
		while (waitpid(child, NULL, 0) < 0 && errno == EINTR)
			;
	}
	close(root);
}
