// SPDX-License-Identifier: Apache-2.0
/*
 * maid-hook: an OCI createContainer hook that mounts the native store in a container, for buildah, podman
 * and CRI-O. It is started in the container's mount namespace, before the root is changed, with the
 * container's state on standard input.
 *
 *   maid-hook [--store DIR] [--socket PATH] [--verbose]
 *
 * The store is mounted read-only at /dev/.maid, but only where the container has a /dev of its own: in the
 * image's file system the mount point would stay. Nothing that goes wrong here is a reason for a container
 * to fail: the exit status is always 0, with --verbose there is a line on standard error, and what is
 * mounted is either all of it or nothing.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <linux/openat2.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <limits.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "oci.h"

#ifndef SYS_move_mount
#define SYS_move_mount 429
#endif
#ifndef SYS_openat2
#define SYS_openat2 437
#endif
#ifndef SYS_mount_setattr
#define SYS_mount_setattr 442
#endif
#ifndef MOVE_MOUNT_F_EMPTY_PATH
#define MOVE_MOUNT_F_EMPTY_PATH 0x4
#define MOVE_MOUNT_T_EMPTY_PATH 0x40
#endif
#define ATTR_RDONLY 0x1
#define ATTR_NOSUID 0x2
#define ATTR_NODEV 0x4

#define STATE_LIMIT (1 << 20)
#define SECONDS 5	/* after which the container goes on without the store */

struct attributes {
	uint64_t set, clear, propagation, namespace;
};

static int open_directory(int above, const char *name, uint64_t resolve)
{
	struct open_how how = { .flags = O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC,
				.resolve = resolve | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS };

	return syscall(SYS_openat2, above, name, &how, sizeof(how));
}

/* The container's own /dev, a file system in memory that goes away with it. */
static const char *open_devices(int root, int *devices)
{
	struct stat image, own, machine;
	struct statfs kind;

	*devices = open_directory(root, "dev", RESOLVE_IN_ROOT);
	if (*devices < 0)
		return "there is no directory /dev";
	if (fstat(root, &image) < 0 || fstat(*devices, &own) < 0 || fstatfs(*devices, &kind) < 0)
		return "/dev cannot be looked at";
	if (own.st_dev == image.st_dev || kind.f_type != TMPFS_MAGIC)
		return "/dev is not a file system of the container's own";
	/* devtmpfs calls itself tmpfs. */
	if (stat("/dev", &machine) == 0 && machine.st_dev == own.st_dev)
		return "/dev is the machine's";
	return NULL;
}

/* Since Linux 5.12: made as it is to be, and only then visible. */
static bool attach(int store, int point)
{
	struct attributes attributes = { .set = ATTR_RDONLY | ATTR_NOSUID | ATTR_NODEV,
					 .propagation = MS_PRIVATE };
	int tree = clone_mount(store);
	bool is_done;

	if (tree < 0)
		return false;
	is_done = syscall(SYS_mount_setattr, tree, "", AT_EMPTY_PATH, &attributes, sizeof(attributes)) == 0 &&
		  syscall(SYS_move_mount, tree, "", point, "",
			  MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH) == 0;
	close(tree);
	return is_done;
}

/* On older kernels, and where a filter forbids the new calls. By descriptor: no path is looked up again. */
static bool bind(int store, int devices, int point)
{
	char from[32], to[32];
	unsigned long flags = MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV;
	struct statvfs inherited;
	bool is_done;
	int top;

	snprintf(from, sizeof(from), "/proc/self/fd/%d", store);
	snprintf(to, sizeof(to), "/proc/self/fd/%d", point);
	if (mount(from, to, NULL, MS_BIND, NULL) < 0)
		return false;
	top = open_directory(devices, STORE_MOUNT, RESOLVE_BENEATH);
	if (top < 0) {
		/* The directory below is open already, and a mount is taken off from there too. */
		snprintf(to, sizeof(to), "/proc/self/fd/%d/" STORE_MOUNT, devices);
		umount2(to, MNT_DETACH);
		return false;
	}
	snprintf(to, sizeof(to), "/proc/self/fd/%d", top);
	/* In a user namespace the flags of the mount that was copied are locked: they are to be named again. */
	if (fstatvfs(top, &inherited) == 0) {
		flags |= inherited.f_flag & ST_NOATIME ? MS_NOATIME : 0;
		flags |= inherited.f_flag & ST_NODIRATIME ? MS_NODIRATIME : 0;
		flags |= inherited.f_flag & ST_RELATIME ? MS_RELATIME : 0;
	}
	is_done = mount(NULL, to, NULL, flags, NULL) == 0;
	if (!is_done)
		umount2(to, MNT_DETACH);
	close(top);
	return is_done;
}

static const char *mount_store(int store, int root)
{
	int devices, point;
	bool is_new;
	const char *why_not = open_devices(root, &devices);

	if (why_not)
		return why_not;
	is_new = mkdirat(devices, STORE_MOUNT, 0755) == 0;
	if (!is_new && errno != EEXIST)
		return "/dev/" STORE_MOUNT " cannot be made";
	point = open_directory(devices, STORE_MOUNT, RESOLVE_BENEATH | RESOLVE_NO_XDEV);
	if (point < 0)
		return errno == EXDEV ? "something is mounted at /dev/" STORE_MOUNT :
					"/dev/" STORE_MOUNT " is no directory";
	if (attach(store, point) || bind(store, devices, point))
		return NULL;
	if (is_new)
		unlinkat(devices, STORE_MOUNT, AT_REMOVEDIR);
	return "the kernel does not let it be mounted";
}

static const char *read_state(char *bundle, size_t size)
{
	static char text[STATE_LIMIT];
	struct json state, path;
	long length = read_all(STDIN_FILENO, text, sizeof(text));

	if (length < 0 || !json_read(text, length, &state) || !json_member(state, "bundle", &path) ||
	    !json_string(path, bundle, size))
		return "standard input is not the state of a container";
	return NULL;
}

static const char *accelerate(const char *store_path, const char *socket_path)
{
	struct container container;
	char bundle[PATH_MAX];
	int store = open_store(store_path);
	const char *why_not;

	if (store < 0)
		return "there is no store";
	why_not = read_state(bundle, sizeof(bundle));
	if (!why_not)
		why_not = open_container(bundle, &container);
	if (!why_not)
		why_not = is_to_be_accelerated(&container);
	if (!why_not)
		why_not = mount_store(store, container.root);
	if (!why_not)
		tell_daemon(socket_path, container.root);
	return why_not;
}

static void give_up(int number)
{
	(void)number;
	_exit(0);
}

int main(int argc, char **argv)
{
	const char *store = STORE, *socket_path = SOCKET, *why_not;
	bool is_verbose = false;
	sigset_t alarms;
	int i;

	sigemptyset(&alarms);
	sigaddset(&alarms, SIGALRM);
	signal(SIGALRM, give_up);
	sigprocmask(SIG_UNBLOCK, &alarms, NULL);	/* what a runtime blocks is inherited */
	alarm(SECONDS);
	for (i = 1; i < argc; i++) {
		if (!strcmp(argv[i], "--verbose"))
			is_verbose = true;
		else if (!strcmp(argv[i], "--store") && i + 1 < argc)
			store = argv[++i];
		else if (!strcmp(argv[i], "--socket") && i + 1 < argc)
			socket_path = argv[++i];
	}
	why_not = accelerate(store, socket_path);
	if (is_verbose)
		dprintf(STDERR_FILENO, "maid-hook: %s\n", why_not ? why_not : "mounted");
	return 0;
}
