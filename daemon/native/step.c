/*
 * maid-step: the one process that stands by a step from its first mount to its last breath, so that
 * a step does not depend on the daemon's life.
 *
 *   maid-step [option value]... -- RUNTIME [ARG...]
 *
 * It moves into a mount namespace of its own, attaches what was handed over as descriptors, starts
 * the OCI runtime (which must detach and write DIRECTORY/pid), becomes the parent of the container's
 * first process by being a subreaper, waits for it, and writes DIRECTORY/result. Whatever ends it
 * early (time limit, SIGTERM from the daemon) kills the container's first process, and with it the
 * whole pid namespace. Every mount is gone with the namespace: there is nothing to clean up.
 *
 * Options:
 *   directory PATH	the step's own directory (the bundle): rootfs/, bind/N and lower/ are mount points
 *   rootfs FD		the root file system, a directory
 *   changes FD		a directory with upper/ and work/: the rootfs stays as it is, changes go there
 *   bind FD		the next bind source; the K-th is attached at bind/K
 *   caller FD		the mount namespace in which the descriptors were opened, if it is another
 *   timeout MS		end the step after so many milliseconds
 *   cgroup PATH	enter this cgroup (a directory) first; may be given for each v1 controller
 *   hide PATH		unmount PATH for the runtime (crun < 1.9 stops where /sys/fs/cgroup/unified is)
 *
 * result holds one line: STATE STATUS WALL USER SYSTEM MAXRSS, with STATE one of exited, signaled,
 * timeout, cancelled, refused (the runtime did not start it: STATUS is the runtime's, its words are
 * in DIRECTORY/log), failed (an own call did: the words follow); microseconds; MAXRSS in KiB.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#ifndef SYS_open_tree
#define SYS_open_tree 428
#define SYS_move_mount 429
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
#define MAX_BINDS 256
#define MAX_CGROUPS 16

static const char *directory;
static struct timespec begun;
static int ended_by;	/* SIGTERM or SIGALRM once one came */

static long microseconds_since_begin(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (now.tv_sec - begun.tv_sec) * 1000000L + (now.tv_nsec - begun.tv_nsec) / 1000;
}

/* The result appears whole or not at all. */
static void write_result(const char *format, ...)
{
	char from[512], to[512], line[512];
	va_list arguments;
	int file, length;

	va_start(arguments, format);
	length = vsnprintf(line, sizeof(line), format, arguments);
	va_end(arguments);
	if (length >= (int)sizeof(line))
		length = sizeof(line) - 1;
	snprintf(from, sizeof(from), "%s/result.new", directory);
	snprintf(to, sizeof(to), "%s/result", directory);
	file = open(from, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (file < 0 || write(file, line, length) != length || rename(from, to) < 0)
		_exit(126);
	close(file);
}

static void fail(const char *what)
{
	write_result("failed 125 %ld 0 0 0 %s: %s\n", microseconds_since_begin(), what, strerror(errno));
	_exit(125);
}

static int number(const char *text)
{
	char *end;
	long value = strtol(text, &end, 10);

	if (!*text || *end || value < 0) {
		errno = EINVAL;
		fail(text);
	}
	return (int)value;
}

static void own_descriptor(int descriptor)
{
	if (fcntl(descriptor, F_SETFD, FD_CLOEXEC) < 0)
		fail("a descriptor that was not handed over");
}

/*
 * A detached copy of what a descriptor names, with the mounts below it. The kernel copies only
 * mounts of the caller's own mount namespace: one opened elsewhere is copied from there.
 */
static int tree(int descriptor, int own, int caller)
{
	int flags = AT_EMPTY_PATH | OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_RECURSIVE;
	int copy = syscall(SYS_open_tree, descriptor, "", flags);

	if (copy < 0 && errno == EINVAL && caller >= 0) {
		if (setns(caller, CLONE_NEWNS) < 0)
			fail("entering the caller's mount namespace");
		copy = syscall(SYS_open_tree, descriptor, "", flags);
		if (setns(own, CLONE_NEWNS) < 0)
			fail("returning to the own mount namespace");
	}
	if (copy < 0)
		fail("open_tree");
	close(descriptor);
	return copy;
}

static const char *below(const char *name)
{
	static char path[512];

	if (snprintf(path, sizeof(path), "%s/%s", directory, name) >= (int)sizeof(path)) {
		errno = ENAMETOOLONG;
		fail(name);
	}
	return path;
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

/*
 * One of the two directories that an overlay writes to. It is opened, checked and then used by its
 * descriptor, so that a caller cannot put a symbolic link in its place in between.
 */
static int overlay_directory(const char *name, int owner)
{
	int descriptor = open(below(name), O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	struct stat what;

	if (descriptor < 0 || fstat(descriptor, &what) < 0)
		fail(name);
	if (owner >= 0 && what.st_uid != (uid_t)owner) {
		errno = EPERM;
		fail("the overlay directory belongs to somebody else");
	}
	return descriptor;
}

static void mount_overlay(int owner)
{
	int upper = overlay_directory("changes/upper", owner);
	int work = overlay_directory("changes/work", owner);
	/*
	 * redirect_dir: without it renaming a directory of the lower layer fails with EXDEV, and dpkg
	 * with it. It needs trusted extended attributes, which only the initial user namespace has;
	 * elsewhere (maid as an ordinary user) those of the user must do.
	 */
	const char *kinds[] = { "redirect_dir=on,index=off", "userxattr,index=off" };
	char options[1024];
	size_t i;

	for (i = 0; i < 2; i++) {
		snprintf(options, sizeof(options),
			 "lowerdir=%s/lower,upperdir=/proc/self/fd/%d,workdir=/proc/self/fd/%d,%s",
			 directory, upper, work, kinds[i]);
		if (mount("overlay", below("rootfs"), "overlay", 0, options) == 0)
			break;
		if (errno != EPERM || i)
			fail("mounting the overlay");
	}
	close(upper);
	close(work);
}

static void attach_network(int network)
{
	char from[64];
	int file = open(below("net"), O_WRONLY | O_CREAT | O_CLOEXEC, 0600);

	if (file < 0)
		fail("net");
	close(file);
	snprintf(from, sizeof(from), "/proc/self/fd/%d", network);
	if (mount(from, below("net"), NULL, MS_BIND, NULL) < 0)
		fail("attaching the network namespace");
}

static void write_pid(void)
{
	char text[16];
	int length = snprintf(text, sizeof(text), "%d\n", getpid());
	int file = open(below("supervisor"), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

	if (file < 0 || write(file, text, length) != length)
		fail("supervisor");
	close(file);
}

static void enter_cgroup(const char *path)
{
	char file[512];
	int descriptor;

	snprintf(file, sizeof(file), "%s/cgroup.procs", path);
	descriptor = open(file, O_WRONLY | O_CLOEXEC);
	if (descriptor < 0 || write(descriptor, "0", 1) != 1)
		fail(file);
	close(descriptor);
}

/*
 * Kill every child, and what is reparented to us by their death, until none is left. A container's
 * first process takes its whole pid namespace with it.
 */
static void kill_all(pid_t keep, struct rusage *usage, int *status)
{
	char path[64], list[4096], *at;
	ssize_t length;
	int file, ignored;
	pid_t child;

	snprintf(path, sizeof(path), "/proc/self/task/%d/children", getpid());
	for (;;) {
		file = open(path, O_RDONLY | O_CLOEXEC);
		if (file < 0)
			fail(path);
		length = read(file, list, sizeof(list) - 1);
		close(file);
		list[length > 0 ? length : 0] = 0;
		for (at = list; *at;) {
			child = strtol(at, &at, 10);
			if (child > 0)
				kill(child, SIGKILL);
			while (*at == ' ' || *at == '\n')
				at++;
		}
		do {
			struct rusage used;

			child = wait4(-1, &ignored, 0, &used);
			if (child > 0 && child == keep) {
				*usage = used;
				*status = ignored;
			}
		} while (child < 0 && errno == EINTR);
		if (child < 0)
			return;
	}
}

static pid_t start(char **command)
{
	sigset_t none;
	pid_t child = vfork();

	if (child < 0)
		fail("vfork");
	if (child == 0) {
		sigemptyset(&none);
		sigprocmask(SIG_SETMASK, &none, NULL);
		execv(command[0], command);
		_exit(127);
	}
	return child;
}

static pid_t container_pid(void)
{
	char text[32] = "";
	int file = open(below("pid"), O_RDONLY | O_CLOEXEC);

	if (file < 0 || read(file, text, sizeof(text) - 1) <= 0)
		fail("the runtime wrote no pid file");
	close(file);
	return atoi(text);
}

static void write_end(const char *state, int status, const struct rusage *usage)
{
	write_result("%s %d %ld %ld %ld %ld\n", state, status, microseconds_since_begin(),
		     usage->ru_utime.tv_sec * 1000000L + usage->ru_utime.tv_usec,
		     usage->ru_stime.tv_sec * 1000000L + usage->ru_stime.tv_usec, usage->ru_maxrss);
}

/*
 * Wait for `child`; true when it ended by itself, false when a signal came first that ends the step.
 * The signals are blocked and taken one by one, so none can fall between a look and a wait.
 */
static int wait_for(pid_t child, int *status, struct rusage *usage, const sigset_t *signals)
{
	siginfo_t info;

	for (;;) {
		info.si_pid = 0;
		if (waitid(P_PID, child, &info, WEXITED | WNOWAIT | WNOHANG) < 0)
			fail("waitid");
		if (info.si_pid == child) {
			if (wait4(child, status, 0, usage) < 0)
				fail("wait4");
			return 1;
		}
		if (sigwaitinfo(signals, &info) < 0 && errno != EINTR)
			fail("sigwaitinfo");
		if (info.si_signo != SIGCHLD) {
			ended_by = info.si_signo;
			return 0;
		}
	}
}

int main(int argc, char **argv)
{
	int rootfs = -1, changes = -1, caller = -1, network = -1, owner = -1, timeout = 0, own = -1;
	int binds[MAX_BINDS], bind_count = 0, cgroup_count = 0, status = 0, i;
	const char *cgroups[MAX_CGROUPS], *hide = NULL;
	sigset_t signals;
	struct rusage usage = { 0 };
	char name[32], **command = NULL;
	pid_t runtime, container = 0;

	clock_gettime(CLOCK_MONOTONIC, &begun);
	for (i = 1; i + 1 < argc && strcmp(argv[i], "--"); i += 2) {
		if (!strcmp(argv[i], "directory"))
			directory = argv[i + 1];
		else if (!strcmp(argv[i], "rootfs"))
			rootfs = number(argv[i + 1]);
		else if (!strcmp(argv[i], "changes"))
			changes = number(argv[i + 1]);
		else if (!strcmp(argv[i], "caller"))
			caller = number(argv[i + 1]);
		else if (!strcmp(argv[i], "network"))
			network = number(argv[i + 1]);
		else if (!strcmp(argv[i], "owner"))
			owner = number(argv[i + 1]);
		else if (!strcmp(argv[i], "timeout"))
			timeout = number(argv[i + 1]);
		else if (!strcmp(argv[i], "hide"))
			hide = argv[i + 1];
		else if (!strcmp(argv[i], "bind") && bind_count < MAX_BINDS)
			binds[bind_count++] = number(argv[i + 1]);
		else if (!strcmp(argv[i], "cgroup") && cgroup_count < MAX_CGROUPS)
			cgroups[cgroup_count++] = argv[i + 1];
		else
			break;
	}
	if (!directory || rootfs < 0 || i + 1 >= argc || strcmp(argv[i], "--")) {
		dprintf(2, "usage: maid-step directory PATH rootfs FD [option value]... -- RUNTIME [ARG...]\n");
		return 2;
	}
	command = argv + i + 1;

	/* Descriptors of the step must not reach the runtime: only its standard streams do. */
	own_descriptor(rootfs);
	if (changes >= 0)
		own_descriptor(changes);
	if (caller >= 0)
		own_descriptor(caller);
	if (network >= 0)
		own_descriptor(network);
	for (i = 0; i < bind_count; i++)
		own_descriptor(binds[i]);

	setsid();
	write_pid();
	sigemptyset(&signals);
	sigaddset(&signals, SIGTERM);
	sigaddset(&signals, SIGALRM);
	sigaddset(&signals, SIGCHLD);
	sigprocmask(SIG_BLOCK, &signals, NULL);
	signal(SIGCHLD, SIG_DFL);
	signal(SIGPIPE, SIG_DFL);	/* Python ignores it, and what is ignored is inherited */
	if (prctl(PR_SET_CHILD_SUBREAPER, 1) < 0)
		fail("PR_SET_CHILD_SUBREAPER");
	if (timeout) {
		struct itimerval limit = { .it_value = { timeout / 1000, timeout % 1000 * 1000 } };

		setitimer(ITIMER_REAL, &limit, NULL);
	}
	for (i = 0; i < cgroup_count; i++)
		enter_cgroup(cgroups[i]);
	own = open("/proc/self/ns/mnt", O_RDONLY | O_CLOEXEC);
	if (own < 0)
		fail("/proc/self/ns/mnt");
	/* While still in the namespace of the descriptors' mounts: copies; then, in an own one, their places. */
	rootfs = tree(rootfs, own, caller);
	if (changes >= 0)
		changes = tree(changes, own, caller);
	for (i = 0; i < bind_count; i++)
		binds[i] = tree(binds[i], own, caller);
	if (unshare(CLONE_NEWNS) < 0)
		fail("unshare mount namespace");
	if (mount("none", "/", NULL, MS_REC | MS_SLAVE, NULL) < 0)
		fail("making mounts slaves");
	attach(rootfs, changes < 0 ? "rootfs" : "lower");
	if (changes >= 0) {
		attach(changes, "changes");
		if (mkdir(below("rootfs"), 0755) < 0 && errno != EEXIST)
			fail("rootfs");
		mount_overlay(owner);
	}
	if (bind_count && mkdir(below("bind"), 0755) < 0 && errno != EEXIST)
		fail("bind");
	for (i = 0; i < bind_count; i++) {
		snprintf(name, sizeof(name), "bind/%d", i);
		attach(binds[i], name);
	}
	if (network >= 0)
		attach_network(network);
	if (hide)
		umount2(hide, MNT_DETACH);

	runtime = start(command);
	if (wait_for(runtime, &status, &usage, &signals)) {
		struct rusage ignored;
		int unused;

		if (status) {
			kill_all(0, &ignored, &unused);
			write_end("refused", WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status),
				  &usage);
			return 0;
		}
		container = container_pid();
		memset(&usage, 0, sizeof(usage));
		if (wait_for(container, &status, &usage, &signals)) {
			kill_all(0, &ignored, &unused);
			if (WIFSIGNALED(status))
				write_end("signaled", WTERMSIG(status), &usage);
			else
				write_end("exited", WEXITSTATUS(status), &usage);
			return 0;
		}
	}
	kill_all(container, &usage, &status);
	write_end(ended_by == SIGALRM ? "timeout" : "cancelled", SIGKILL, &usage);
	return 0;
}
