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
 *   directory PATH	the step's own directory (the bundle)
 *   rootfs FD		the root file system, a directory
 *   changes FD		a directory with upper/ and work/: the rootfs stays as it is, changes go there
 *   owner UID		with group GID, user-ids TEXT, group-ids TEXT (lines as in uid_map): the overlay
 *			is made with no more than this user's power over files
 *   bind FD		the next bind source; the K-th is attached at bind/K
 *   bind-readonly FD	the same, with everything mounted in it read-only
 *   caller FD		the mount namespace in which the descriptors were opened, if it is another
 *   reopen 1		a descriptor of a mount namespace that cannot be entered is opened again by its
 *			path: for a daemon that has no more power than its caller
 *   user PATH		the step's user namespace, where it has other ids than the daemon's
 *   at PATH		where the last bind is mounted
 *   point PATH		a directory that something is mounted on; point-file PATH: a file
 *   init PATH		the program that is to be the container's first process, attached at init
 *   profile PATH	the program that the command runs under, attached at profile
 *   store FD		the native store: attached read-only at store/, and a log of programs at programs/log
 *   sys 1		attach the machine's /sys, read-only, at sys/
 *   groups GID,...	the supplementary groups to run with; none of them if empty
 *   network FD		the network namespace to run in
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
#include <grp.h>
#include <limits.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/fsuid.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "step.h"

static struct step step = {
	.rootfs = -1, .changes = -1, .caller = -1, .store = -1, .owner = -1, .group = -1,
	.user = -1,
};
#define RESULT 512	/* bytes that a result may have */

static struct timespec begun;
static pid_t supervisor;
static int ended_by;	/* SIGTERM or SIGALRM once one came */

static long microseconds_since_begin(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (now.tv_sec - begun.tv_sec) * 1000000L + (now.tv_nsec - begun.tv_nsec) / 1000;
}

static int open_result(char *path, size_t size)
{
	snprintf(path, size, "%s/result.new", step.directory);
	return open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
}

/* Have its place on the disk from the beginning: the disk may be full when the step ends. */
static void make_room_for_result(void)
{
	char path[512], empty[RESULT] = "";
	int file = open_result(path, sizeof(path));

	if (file < 0 || write(file, empty, sizeof(empty)) != sizeof(empty))
		fail("result");
	close(file);
}

/* The result appears whole or not at all. */
static void write_result(const char *format, ...)
{
	char from[512], to[512], line[RESULT];
	va_list arguments;
	int file, length;

	va_start(arguments, format);
	length = vsnprintf(line, sizeof(line), format, arguments);
	va_end(arguments);
	if (length >= (int)sizeof(line))
		length = sizeof(line) - 1;
	snprintf(to, sizeof(to), "%s/result", step.directory);
	file = open_result(from, sizeof(from));
	if (file < 0 || write(file, line, length) != length || ftruncate(file, length) < 0 ||
	    rename(from, to) < 0)
		_exit(126);
	close(file);
}

/* Kill the children there are now; -1 when they cannot be listed. */
static int kill_children(void)
{
	char path[64], list[4096], *at = list, *end;
	ssize_t length;
	long child;
	int file;

	snprintf(path, sizeof(path), "/proc/self/task/%d/children", getpid());
	file = open(path, O_RDONLY | O_CLOEXEC);
	if (file < 0)
		return -1;
	length = read(file, list, sizeof(list) - 1);
	close(file);
	list[length > 0 ? length : 0] = 0;
	for (;;) {
		child = strtol(at, &end, 10);
		/* Each is followed by a blank; one without was cut off, and its turn comes again. */
		if (end == at || *end != ' ')
			return 0;
		kill(child, SIGKILL);
		at = end + 1;
	}
}

void fail(const char *what)
{
	int error = errno;

	/* What was started must not outlive its supervisor. In a child there is nothing to end. */
	while (getpid() == supervisor && kill_children() == 0 && wait(NULL) > 0)
		;
	setfsuid(geteuid());	/* who makes an overlay for its owner is that owner for files */
	write_result("failed 125 %ld 0 0 0 %s: %s\n", microseconds_since_begin(), what, strerror(error));
	_exit(125);
}

const char *below(const char *name)
{
	static char path[512];

	if (snprintf(path, sizeof(path), "%s/%s", step.directory, name) >= (int)sizeof(path)) {
		errno = ENAMETOOLONG;
		fail(name);
	}
	return path;
}

/*
 * From here on the step has begun in a daemon's eyes. One that comes after another was killed takes the
 * name before us where it wants to be certain that the step never begins (maid.steps.record.withhold):
 * then its directory is not ours any more, and nobody waits for a result.
 */
static void begin(void)
{
	char text[16];
	int length = snprintf(text, sizeof(text), "%d\n", supervisor);
	int file = open(below("supervisor"), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);

	if (file < 0 && (errno == EEXIST || errno == ENOENT))
		_exit(125);
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
	struct rusage used;
	pid_t child;
	int end;

	for (;;) {
		if (kill_children() < 0)
			fail("listing the children");
		do {
			child = wait4(-1, &end, 0, &used);
		} while (child < 0 && errno == EINTR);
		if (child < 0)
			return;
		if (child == keep) {
			*usage = used;
			*status = end;
		}
	}
}

/*
 * Start the runtime from a read-only clone of its mount. That is what crun looks for before it executes
 * itself a second time, from a copy that a container cannot write to (CVE-2019-5736, its
 * cloned_binary.c); here there is no need for it, which saves a tenth of a step's time.
 */
static pid_t start(char **command, char **environment, int report)
{
	int program = fcntl(readonly_program(command[0]), F_DUPFD_CLOEXEC, 10), signal_number;
	struct sigaction normal = { .sa_handler = SIG_DFL };
	pid_t child;
	sigset_t none;

	child = fork();
	if (child < 0)
		fail("fork");
	if (child == 0) {
		/* Python ignores some signals, and what is ignored is inherited. */
		for (signal_number = 1; signal_number < NSIG; signal_number++)
			sigaction(signal_number, &normal, NULL);
		sigemptyset(&none);
		sigprocmask(SIG_SETMASK, &none, NULL);
		/* The runtime hands descriptor 3 on to the first process (--preserve-fds 1). */
		if (report == 3)
			fcntl(report, F_SETFD, 0);
		else
			dup2(report, 3);
		syscall(SYS_execveat, program, "", command, environment, AT_EMPTY_PATH);
		_exit(127);
	}
	close(program);
	return child;
}

/* What the container's first process says of its command: 's' or 'x' and a number, or 0. */
static char said(int report, int *value)
{
	char line[32] = "", what = 0;

	fcntl(report, F_SETFL, O_NONBLOCK);
	if (read(report, line, sizeof(line) - 1) <= 0 || sscanf(line, "%c %d", &what, value) != 2)
		return 0;
	return what;
}

/* The log is where the runtime says why it could not start a command: here it is our part. */
static void log_refusal(const char *command, int error)
{
	int file = open(below("log"), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);

	if (file >= 0)
		dprintf(file, "exec %s: %s\n", command, strerror(error));
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
	tally_programs();
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

/* The caller's own groups: a step must be denied what they are denied, and have what they have. */
static void take_groups(const char *list)
{
	gid_t *groups = calloc(strlen(list) / 2 + 1, sizeof(*groups));
	size_t count = 0;
	char *end;

	if (!groups)
		fail("calloc");
	for (; *list; list = *end ? end + 1 : end) {
		groups[count++] = strtoul(list, &end, 10);
		if (end == list || (*end && *end != ',')) {
			errno = EINVAL;
			fail("groups");
		}
	}
	if (setgroups(count, groups) < 0)
		fail("setgroups");
	free(groups);
}

int main(int argc, char **argv, char **environment)
{
	struct limits limits = { .network = -1 };
	struct rusage usage = { 0 }, ignored;
	pid_t runtime, container = 0;
	int status = 0, unused, i, report[2], value;
	sigset_t signals;
	char **command;

	clock_gettime(CLOCK_MONOTONIC, &begun);
	command = read_options(argc, argv, &step, &limits);
	if (!command) {
		dprintf(2, "usage: maid-step directory PATH rootfs FD [option value]... -- RUNTIME [ARG...]\n");
		return 2;
	}
	supervisor = getpid();
	setsid();
	begin();
	make_room_for_result();
	sigemptyset(&signals);
	sigaddset(&signals, SIGTERM);
	sigaddset(&signals, SIGALRM);
	sigaddset(&signals, SIGCHLD);
	sigprocmask(SIG_BLOCK, &signals, NULL);
	signal(SIGCHLD, SIG_DFL);	/* ignored, it would take the children's ends from us */
	if (prctl(PR_SET_CHILD_SUBREAPER, 1) < 0)
		fail("PR_SET_CHILD_SUBREAPER");
	if (limits.timeout) {
		struct itimerval limit = {
			.it_value = { limits.timeout / 1000, limits.timeout % 1000 * 1000 }
		};

		setitimer(ITIMER_REAL, &limit, NULL);
	}
	for (i = 0; i < limits.cgroup_count; i++)
		enter_cgroup(limits.cgroups[i]);
	make_mounts(&step);
	if (limits.network >= 0 && setns(limits.network, CLONE_NEWNET) < 0)
		fail("entering the network namespace");
	if (limits.groups)
		take_groups(limits.groups);
	make_points(&step);

	if (pipe2(report, O_CLOEXEC) < 0)
		fail("pipe2");
	runtime = start(command, environment, report[1]);
	close(report[1]);
	/* Whoever is at their other ends must see them closed when the step closes them. */
	for (i = 0; i <= 2; i++)
		close(i);
	if (wait_for(runtime, &status, &usage, &signals)) {
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
			switch (said(report[0], &value)) {
			case 's':
				write_end("signaled", value, &usage);
				return 0;
			case 'x':
				log_refusal("the command", value);
				write_end("refused", 1, &usage);
				return 0;
			}
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
