/*
 * The mounts of a step: what the caller handed over as descriptors becomes what the bundle names.
 *
 * No path of the caller's is looked up. A descriptor is copied (open_tree) with the mount it was
 * opened through, so that nosuid, nodev and read-only stay what they were, and attached in a mount
 * namespace that nobody else is in. The overlay is the delicate part: the kernel copies files to its
 * upper directory with the powers of whoever mounted it, so for a caller who is not root those are
 * cut down to what the caller has (restrict_to_owner).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/fsuid.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "step.h"

/* Of Linux 5.2 and 5.12; C libraries of the same age as the kernels they are built for lack them. */
#ifndef SYS_open_tree
#define SYS_open_tree 428
#define SYS_move_mount 429
#endif
#ifndef SYS_mount_setattr
#define SYS_mount_setattr 442
#endif
#ifndef OPEN_TREE_CLONE
#define OPEN_TREE_CLONE 1
#define OPEN_TREE_CLOEXEC O_CLOEXEC
#endif
#ifndef MOVE_MOUNT_F_EMPTY_PATH
#define MOVE_MOUNT_F_EMPTY_PATH 4
#endif
#ifndef AT_RECURSIVE
#define AT_RECURSIVE 0x8000
#endif
#define ATTR_RDONLY 0x1
#define ATTR_NOSUID 0x2
#define ATTR_NODEV 0x4
#define ATTR_NOEXEC 0x8
#define ATTR_IDMAP 0x100000

struct attributes {
	uint64_t set, clear, propagation, namespace;
};

static int own = -1;	/* the mount namespace in which maid-step was started */

static int set_attributes(int tree, unsigned int flags, uint64_t set, int namespace)
{
	struct attributes attributes = {
		.set = set,
		.propagation = MS_PRIVATE,	/* what is mounted here later must not appear at its source */
		.namespace = namespace,
	};

	return syscall(SYS_mount_setattr, tree, "", AT_EMPTY_PATH | flags, &attributes,
		       sizeof(attributes));
}

static int copy_tree(int descriptor, const char *path, unsigned int flags)
{
	return syscall(SYS_open_tree, descriptor, path, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | flags);
}

/* In the caller's mount namespace. Coming back makes that namespace's root ours: undo that as well. */
static int copy_at_caller(int descriptor, int caller, unsigned int flags)
{
	int root = open("/", O_PATH | O_DIRECTORY | O_CLOEXEC), copy, number;

	if (root < 0)
		fail("/");
	if (setns(caller, CLONE_NEWNS) < 0)
		fail("entering the caller's mount namespace");
	copy = copy_tree(descriptor, "", flags);
	number = errno;
	if (setns(own, CLONE_NEWNS) < 0 || fchdir(root) < 0 || chroot(".") < 0)
		fail("returning to the own mount namespace");
	close(root);
	errno = number;
	return copy;
}

/* The same file by its path, if that leads to it here. */
static int opened_again(int descriptor)
{
	char link[64], path[4096];
	struct stat before, after;
	ssize_t length;
	int again;

	snprintf(link, sizeof(link), "/proc/self/fd/%d", descriptor);
	length = readlink(link, path, sizeof(path) - 1);
	if (length < 0)
		fail(link);
	path[length] = 0;
	again = open(path, O_PATH | O_NOFOLLOW | O_CLOEXEC);
	if (again < 0 || fstat(descriptor, &before) < 0 || fstat(again, &after) < 0)
		fail(path);
	if (before.st_dev != after.st_dev || before.st_ino != after.st_ino) {
		errno = ESTALE;
		fail(path);
	}
	return again;
}

/*
 * A detached copy of what a descriptor names. The kernel copies only mounts of the process's own
 * mount namespace: one opened elsewhere is copied from there.
 */
static int copy_of(const struct step *step, int descriptor, unsigned int flags)
{
	int copy = copy_tree(descriptor, "", AT_EMPTY_PATH | flags), again;

	if (copy < 0 && errno == EINVAL && step->caller >= 0) {
		copy = copy_at_caller(descriptor, step->caller, AT_EMPTY_PATH | flags);
	} else if (copy < 0 && errno == EINVAL && step->reopen) {
		again = opened_again(descriptor);
		copy = copy_tree(again, "", AT_EMPTY_PATH | flags);
		close(again);
	}
	return copy;
}

static int tree(const struct step *step, int descriptor, int readonly)
{
	int copy = copy_of(step, descriptor, AT_RECURSIVE);

	if (copy < 0)
		fail("what was handed over is no file or directory that can be mounted");
	if (set_attributes(copy, AT_RECURSIVE, readonly ? ATTR_RDONLY : 0, 0) < 0)
		fail("mount_setattr");
	close(descriptor);
	return copy;
}

/*
 * A directory for the overlay, without what is mounted in it: an overlay does not show that, and ids
 * are mapped for one mount. In a user namespace the kernel may insist on copying all of it.
 */
static int layer(const struct step *step, int descriptor, int ids)
{
	int copy = copy_of(step, descriptor, 0);

	if (copy < 0 && errno == EINVAL)
		copy = copy_of(step, descriptor, AT_RECURSIVE);
	if (copy < 0)
		fail("a directory of the overlay");
	if (set_attributes(copy, 0, 0, 0) < 0)
		fail("mount_setattr");
	if (ids >= 0 && set_attributes(copy, 0, ATTR_IDMAP, ids) < 0)
		fail("mapping the ids of the overlay's file system");
	close(descriptor);
	return copy;
}

static void attach(int copy, const char *name)
{
	const char *target = below(name);
	struct stat what;

	if (fstat(copy, &what) < 0)
		fail("fstat");
	if (S_ISDIR(what.st_mode)) {
		if (mkdir(target, 0755) < 0 && errno != EEXIST)
			fail(target);
	} else {
		int file = open(target, O_WRONLY | O_CREAT | O_CLOEXEC, 0644);

		if (file < 0)
			fail(target);
		close(file);
	}
	if (syscall(SYS_move_mount, copy, "", AT_FDCWD, target, MOVE_MOUNT_F_EMPTY_PATH) < 0)
		fail("move_mount");
	close(copy);
}

/* The overlay -------------------------------------------------------------------------------- */

static void write_map(pid_t process, const char *kind, const char *text)
{
	char path[64];
	int file;

	snprintf(path, sizeof(path), "/proc/%d/%s_map", process, kind);
	file = open(path, O_WRONLY | O_CLOEXEC);
	if (file < 0 || write(file, text, strlen(text)) != (ssize_t)strlen(text))
		fail(path);
	close(file);
}

/* A user namespace that has only the owner's ids, each as itself: the map for the overlay's layers. */
static int ids_of_owner(const struct step *step)
{
	char path[64], byte = 0;
	int ready[2], namespace, status;
	pid_t child;

	if (pipe2(ready, O_CLOEXEC) < 0)
		fail("pipe");
	child = fork();
	if (child < 0)
		fail("fork");
	if (child == 0) {
		if (unshare(CLONE_NEWUSER) < 0 || write(ready[1], &byte, 1) != 1)
			_exit(1);
		pause();
		_exit(1);
	}
	close(ready[1]);
	if (read(ready[0], &byte, 1) != 1)
		fail("making a user namespace");
	close(ready[0]);
	write_map(child, "uid", step->user_ids);
	write_map(child, "gid", step->group_ids);
	snprintf(path, sizeof(path), "/proc/%d/ns/user", child);
	namespace = open(path, O_RDONLY | O_CLOEXEC);
	if (namespace < 0)
		fail(path);
	kill(child, SIGKILL);
	waitpid(child, &status, 0);
	return namespace;
}

/* Only the owner's file access counts from here on; most capabilities over files go with it. */
static void become_owner(const struct step *step)
{
	if (setgroups(0, NULL) < 0)
		fail("setgroups");
	setfsgid(step->group);
	setfsuid(step->owner);
	if (setfsuid(-1) != step->owner || setfsgid(-1) != step->group) {
		errno = EPERM;
		fail("taking on the caller's ids");
	}
}

/*
 * The powers with which the kernel will copy files up. Not among them, ever: CAP_MKNOD and CAP_SETFCAP,
 * with which a device node or a file with capabilities on a medium that is mounted nodev and nosuid
 * would become a working one in upper/. CAP_SYS_ADMIN is what trusted.overlay.* attributes need.
 * CAP_CHOWN and CAP_FOWNER are there because the layers' id map has the owner's ids alone: a file of
 * anybody else, set-user-ID root for example, has no owner in there and is not copied (EOVERFLOW).
 */
static void restrict_powers(void)
{
	struct __user_cap_header_struct header = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct data[2] = { 0 };

	data[0].effective = 1u << CAP_SYS_ADMIN | 1u << CAP_DAC_OVERRIDE | 1u << CAP_CHOWN |
			    1u << CAP_FOWNER | 1u << CAP_FSETID;
	data[0].permitted = data[0].effective;
	if (syscall(SYS_capset, &header, data) < 0)
		fail("capset");
}

/* Opened, checked and then used by its descriptor: no symbolic link can be put in its place. */
static int overlay_directory(const char *name, int owner)
{
	int descriptor = open(below(name), O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	struct stat what;

	if (descriptor < 0 || fstat(descriptor, &what) < 0)
		fail(strrchr(name, '/') ? "the overlay's directories upper and work" : name);
	if (owner >= 0 && what.st_uid != (uid_t)owner) {
		errno = EPERM;
		fail("the overlay's directories belong to somebody else");
	}
	return descriptor;
}

static void mount_overlay(const struct step *step)
{
	/*
	 * redirect_dir: without it renaming a directory of the lower layer fails with EXDEV, and dpkg
	 * with it. It needs trusted extended attributes, which only the initial user namespace has;
	 * elsewhere (maid as an ordinary user) those of the user must do.
	 */
	static const char *const kinds[] = {
		"redirect_dir=on,index=off,metacopy=off",
		"userxattr,index=off,metacopy=off",
	};
	int lower = overlay_directory("lower", -1), upper, work;
	char options[512];
	size_t i;

	if (step->owner >= 0)
		become_owner(step);
	upper = overlay_directory("changes/upper", step->owner);
	work = overlay_directory("changes/work", step->owner);
	if (step->owner >= 0)
		restrict_powers();
	for (i = 0; i < 2; i++) {
		/* By descriptor, so that no path needs quoting. */
		snprintf(options, sizeof(options),
			 "lowerdir=/proc/self/fd/%d,upperdir=/proc/self/fd/%d,workdir=/proc/self/fd/%d,%s",
			 lower, upper, work, kinds[i]);
		if (mount("overlay", below("rootfs"), "overlay", 0, options) == 0)
			return;
		if (errno != EPERM)
			break;
	}
	fail("mounting the overlay");
}

/* In a process of its own, which shares the mount namespace: it gives up powers that we need. */
static void mount_overlay_apart(const struct step *step)
{
	pid_t child;
	int status;

	if (step->owner < 0) {
		mount_overlay(step);
		return;
	}
	child = fork();
	if (child < 0)
		fail("fork");
	if (child == 0) {
		mount_overlay(step);
		_exit(0);
	}
	if (waitpid(child, &status, 0) < 0)
		fail("waitpid");
	if (status)
		_exit(125);	/* the child has written the result */
}

/* All of it ---------------------------------------------------------------------------------- */

/* A directory of the machine's, read-only and with `attributes`, without what is mounted in it. */
static int readonly_directory(int at, const char *path, unsigned int flags, uint64_t attributes)
{
	int copy = copy_tree(at, path, flags);

	if (copy < 0 && errno == EINVAL) {
		flags |= AT_RECURSIVE;	/* in a user namespace its parts may not be taken apart */
		copy = copy_tree(at, path, flags);
	}
	if (copy < 0 || set_attributes(copy, flags & AT_RECURSIVE, ATTR_RDONLY | attributes, 0) < 0)
		fail(*path ? path : "the native store");
	return copy;
}

/* /sys as it is, without the cgroups, debugfs and others mounted in it. */
static int machine_sys(void)
{
	return readonly_directory(AT_FDCWD, "/sys", 0, ATTR_NOSUID | ATTR_NODEV | ATTR_NOEXEC);
}

static int native_store(int descriptor)
{
	int copy = readonly_directory(descriptor, "", AT_EMPTY_PATH, ATTR_NOSUID | ATTR_NODEV);

	close(descriptor);
	return copy;
}

void make_mounts(struct step *step)
{
	int overlay = step->changes >= 0, ids = -1, sys = -1, init = -1, profile = -1, store = -1, i;
	char name[32];

	own = open("/proc/self/ns/mnt", O_RDONLY | O_CLOEXEC);
	if (own < 0)
		fail("/proc/self/ns/mnt");
	/* Copies are made in the namespace of the descriptors' mounts; their places are in a new one. */
	if (overlay && step->owner >= 0)
		ids = ids_of_owner(step);
	step->rootfs = overlay ? layer(step, step->rootfs, ids) : tree(step, step->rootfs, 0);
	if (overlay)
		step->changes = layer(step, step->changes, ids);
	for (i = 0; i < step->bind_count; i++)
		step->binds[i] = tree(step, step->binds[i], step->bind_readonly[i]);
	if (step->sys)
		sys = machine_sys();
	if (step->init)
		init = readonly_program(step->init);
	if (step->profile)
		profile = readonly_program(step->profile);
	if (step->store >= 0)
		store = native_store(step->store);
	if (ids >= 0)
		close(ids);
	if (unshare(CLONE_NEWNS) < 0)
		fail("unshare mount namespace");
	if (mount("none", "/", NULL, MS_REC | MS_SLAVE, NULL) < 0)
		fail("making mounts slaves");
	attach(step->rootfs, overlay ? "lower" : "rootfs");
	if (overlay) {
		attach(step->changes, "changes");
		if (mkdir(below("rootfs"), 0755) < 0 && errno != EEXIST)
			fail("rootfs");
		mount_overlay_apart(step);
	}
	if (sys >= 0)
		attach(sys, "sys");
	if (init >= 0)
		attach(init, "init");
	if (profile >= 0)
		attach(profile, "profile");
	if (store >= 0) {
		attach(store, "store");
		make_program_log();
	}
	if (step->bind_count && mkdir(below("bind"), 0755) < 0 && errno != EEXIST)
		fail("bind");
	for (i = 0; i < step->bind_count; i++) {
		snprintf(name, sizeof(name), "bind/%d", i);
		attach(step->binds[i], name);
	}
	if (step->hide)
		umount2(step->hide, MNT_DETACH);
}

int readonly_program(const char *path)
{
	int copy = copy_tree(AT_FDCWD, path, 0);

	if (copy < 0 || set_attributes(copy, 0, ATTR_RDONLY, 0) < 0)
		fail(path);
	return copy;
}
