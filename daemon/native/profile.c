/*
 * maid-profile: runs a command and tells which programs it started, how each ran and what each cost.
 *
 *   maid-profile LOG CMD [ARG...]
 *
 * It traces the command's whole process tree (ptrace(2), PTRACE_SEIZE), but stops nobody for longer than
 * it takes to look: at the birth of a process or thread, at an exec and at an end. Time is the kernel's
 * own count for a process (clock_gettime(2) with its CPU-time clock, in nanoseconds), because what
 * /proc says is cut to hundredths of a second, and most programs of a build need less.
 *
 * LOG gets a record for each program that a process ran, ended by a zero byte:
 *
 *   KIND STARTS PID USER SYSTEM PEAK NAME
 *
 * KIND is 'n' (a native tool from the store), 'e' (by an emulator) or 'h' (the machine's own); STARTS is 1
 * if the process executed the program and 0 if it was forked by one that had; USER and SYSTEM are
 * microseconds, PEAK the most memory in KiB, 0 if unknown; NAME is the program's path as it was
 * executed. KIND in upper case: the process was still running, this is a look at it, and a later record
 * of the same PID is instead of this one. One is written each second.
 *
 * A traced process that executes a set-user-ID program keeps its own identity, unless its tracer has
 * CAP_SYS_PTRACE (security/commoncap.c). The bundle gives us that, and we give it up for the command.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#ifndef PTRACE_EVENT_STOP
#define PTRACE_EVENT_STOP 128
#endif

#define STORE "/dev/.maid/"
#define BUCKETS 4096
#define NAME_SIZE 4096
#define AT_EXECFD 2
#define AT_FLAGS 8
#define AT_FLAGS_PRESERVE_ARGV0 1

/* Microseconds of a process since its birth. */
struct times {
	long long user, system;
};

/* A process or thread that is traced; a thread only has its number. */
struct task {
	struct task *next;
	pid_t pid;
	int is_process;
	char kind;
	int starts;
	struct times before;	/* what earlier programs of this process took */
	long peak;
	char *name;
};

static struct task *tasks[BUCKETS];
static int log_file;

static void fail(const char *what)
{
	dprintf(2, "maid-profile: %s: %s\n", what, strerror(errno));
	_exit(125);
}

/* What /proc knows ---------------------------------------------------------------------------- */

static ssize_t read_proc(pid_t pid, const char *name, char *into, size_t size)
{
	char path[64];
	ssize_t length;
	int file;

	snprintf(path, sizeof(path), "/proc/%d/%s", pid, name);
	file = open(path, O_RDONLY | O_CLOEXEC);
	if (file < 0)
		return -1;
	length = read(file, into, size - 1);
	close(file);
	into[length > 0 ? length : 0] = 0;
	return length;
}

/* The number after `key` in /proc/PID/status; -1 if it is not there. */
static long status_number(pid_t pid, const char *key)
{
	char text[4096], *at;

	if (read_proc(pid, "status", text, sizeof(text)) <= 0 || !(at = strstr(text, key)))
		return -1;
	return strtol(at + strlen(key), NULL, 10);
}

/* The fields 14 and on of /proc/PID/stat: user, system, and those of its children, in ticks. */
static int ticks(pid_t pid, long long fields[4])
{
	char text[1024], *at;

	/* The second field is a name that may hold anything. */
	if (read_proc(pid, "stat", text, sizeof(text)) <= 0 || !(at = strrchr(text, ')')))
		return 0;
	return sscanf(at + 1, " %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lld %lld %lld %lld",
		      fields, fields + 1, fields + 2, fields + 3) == 4;
}

/*
 * How much of a process's time was the system's is known in ticks, or in the usage that came with its
 * last stop, which is finer but has its children's times in it. The sum is exact.
 */
static struct times times_of(pid_t pid, const struct rusage *usage)
{
	long long fields[4] = { 0 }, total, user, system;
	struct timespec now;
	clockid_t clock;

	if (clock_getcpuclockid(pid, &clock) || clock_gettime(clock, &now) < 0)
		return (struct times){ -1, -1 };
	total = now.tv_sec * 1000000LL + now.tv_nsec / 1000;
	if (ticks(pid, fields) && (fields[0] + fields[1] >= 10 || fields[2] + fields[3] > 0 || !usage)) {
		user = fields[0];
		system = fields[1];
	} else {
		user = usage ? usage->ru_utime.tv_sec * 1000000LL + usage->ru_utime.tv_usec : 0;
		system = usage ? usage->ru_stime.tv_sec * 1000000LL + usage->ru_stime.tv_usec : 0;
	}
	system = user + system ? (long long)((double)total * system / (user + system)) : 0;
	return (struct times){ total - system, system };
}

/* Whether binfmt_misc started it: only then its auxiliary vector has one of these (fs/binfmt_misc.c). */
static int by_binfmt_misc(pid_t pid)
{
	unsigned long auxv[128] = { 0 };
	ssize_t length = read_proc(pid, "auxv", (char *)auxv, sizeof(auxv));
	size_t i;

	for (i = 0; i + 1 < 128 && (ssize_t)((i + 2) * sizeof(*auxv)) <= length; i += 2)
		if (auxv[i] == AT_EXECFD || (auxv[i] == AT_FLAGS && auxv[i + 1] & AT_FLAGS_PRESERVE_ARGV0))
			return 1;
	return 0;
}

static int is_emulator(const char *path)
{
	const char *name = strrchr(path, '/');

	return !strncmp(name ? name + 1 : path, "qemu-", 5);
}

/* What a process has just executed: the kind, and the path in `name`. */
static char look(pid_t pid, char name[NAME_SIZE])
{
	char path[64], words[NAME_SIZE], *second;
	ssize_t length;

	snprintf(path, sizeof(path), "/proc/%d/exe", pid);
	length = readlink(path, name, NAME_SIZE - 1);
	if (length < 0) {
		/* Not ours to look at: what is left is the name that ps shows. */
		length = read_proc(pid, "comm", name, NAME_SIZE);
		name[length > 0 ? length - 1 : 0] = 0;
		return 'e';
	}
	name[length] = 0;
	if (!strncmp(name, STORE, strlen(STORE)))
		return 'n';
	if (!by_binfmt_misc(pid) && !is_emulator(name))
		return 'h';
	/* Its command line is the interpreter's name, then the program's path. */
	length = read_proc(pid, "cmdline", words, sizeof(words));
	second = words + strlen(words) + 1;
	if (length > 0 && second < words + length)
		memcpy(name, second, strlen(second) + 1);
	return 'e';
}

/* Tasks --------------------------------------------------------------------------------------- */

static struct task **place_of(pid_t pid)
{
	struct task **at = &tasks[(unsigned int)pid % BUCKETS];

	while (*at && (*at)->pid != pid)
		at = &(*at)->next;
	return at;
}

static void forget(pid_t pid)
{
	struct task **at = place_of(pid), *gone = *at;

	if (!gone)
		return;
	*at = gone->next;
	free(gone->name);
	free(gone);
}

/* The task, and on first sight a new one: a thread, or a process that runs what its parent runs. */
static struct task *task_of(pid_t pid)
{
	struct task **at = place_of(pid), *parent, *task = *at;

	if (task)
		return task;
	task = *at = calloc(1, sizeof(*task));
	if (!task)
		fail("calloc");
	task->pid = pid;
	task->is_process = status_number(pid, "\nTgid:") == pid;
	task->kind = 'h';
	if (task->is_process) {
		parent = *place_of(status_number(pid, "\nPPid:"));
		if (parent && parent->name) {
			task->kind = parent->kind;
			task->name = strdup(parent->name);
		}
	}
	return task;
}

/* The record of what the process has run since its last one. */
static void tell(struct task *task, struct times now, int still_running)
{
	char line[NAME_SIZE + 128];
	long long user = now.user - task->before.user, system = now.system - task->before.system;
	int length;

	if (!task->name || now.user < 0)
		return;
	length = snprintf(line, sizeof(line), "%c %d %d %lld %lld %ld %s",
			  still_running ? task->kind - 'a' + 'A' : task->kind, task->starts, task->pid,
			  user > 0 ? user : 0, system > 0 ? system : 0, task->peak, task->name);
	/* A full disk must not end the command. */
	if (write(log_file, line, length + 1) < 0)
		return;
	if (!still_running)
		task->before = now;
}

static void executed(pid_t pid, const struct rusage *usage)
{
	struct task *task = task_of(pid);
	char name[NAME_SIZE], kind;
	unsigned long former;

	if (ptrace(PTRACE_GETEVENTMSG, pid, 0, &former) == 0 && former != (unsigned long)pid)
		forget(former);	/* a thread that executed has taken its process's number */
	task->is_process = 1;
	kind = look(pid, name);
	/* The front has executed the native tool: what was taken for an emulator was not one. */
	if (kind == 'n' && task->kind == 'e' && task->starts) {
		task->kind = 'n';
		return;
	}
	tell(task, times_of(pid, usage), 0);
	free(task->name);
	task->name = strdup(name);
	task->kind = kind;
	task->starts = 1;
	task->peak = 0;
}

static void tell_of_the_living(void)
{
	struct task *task;
	int i;

	for (i = 0; i < BUCKETS; i++)
		for (task = tasks[i]; task; task = task->next)
			if (task->is_process)
				tell(task, times_of(task->pid, NULL), 1);
}

/* The command --------------------------------------------------------------------------------- */

/* The command has the powers that it would have without us. */
static void give_up_ptrace(void)
{
	struct __user_cap_header_struct header = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct data[2] = { 0 };

	/* Refused where it was not given; then there is nothing to give up. */
	prctl(PR_CAPBSET_DROP, CAP_SYS_PTRACE, 0, 0, 0);
	prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
	if (syscall(SYS_capget, &header, data) < 0)
		return;
	data[0].inheritable = 0;
	data[0].effective &= ~(1u << CAP_SYS_PTRACE);
	data[0].permitted &= ~(1u << CAP_SYS_PTRACE);
	syscall(SYS_capset, &header, data);
}

static pid_t start(char **command)
{
	int ready[2];
	pid_t child;
	char byte;

	if (pipe2(ready, O_CLOEXEC) < 0)
		fail("pipe2");
	child = fork();
	if (child < 0)
		fail("fork");
	if (child == 0) {
		close(ready[1]);
		if (read(ready[0], &byte, 1) != 1)
			_exit(125);
		give_up_ptrace();
		execvp(command[0], command);
		dprintf(2, "maid-profile: %s: %s\n", command[0], strerror(errno));
		_exit(errno == ENOENT || errno == ENOTDIR ? 127 : 126);
	}
	if (ptrace(PTRACE_SEIZE, child, 0,
		   PTRACE_O_TRACEFORK | PTRACE_O_TRACEVFORK | PTRACE_O_TRACECLONE | PTRACE_O_TRACEEXEC |
		   PTRACE_O_TRACEEXIT | PTRACE_O_EXITKILL) < 0)
		fail("PTRACE_SEIZE");
	if (write(ready[1], "", 1) != 1)
		fail("write");
	close(ready[0]);
	close(ready[1]);
	return child;
}

static void ended(pid_t pid, struct times now)
{
	struct task *task = *place_of(pid);

	if (task && task->is_process)
		tell(task, now, 0);
	forget(pid);
}

/* What a stopped task did, and on with it. */
static void stopped(pid_t pid, int status, const struct rusage *usage)
{
	int event = status >> 16, signal_number = WSTOPSIG(status);
	struct task *task = task_of(pid);
	long peak;

	if (event == PTRACE_EVENT_STOP && signal_number != SIGTRAP) {
		ptrace(PTRACE_LISTEN, pid, 0, 0);	/* it was stopped as a whole, and must stay so */
		return;
	}
	if (event == PTRACE_EVENT_EXEC)
		executed(pid, usage);
	else if (event == PTRACE_EVENT_EXIT && task->is_process) {
		peak = status_number(pid, "\nVmHWM:");	/* its memory is about to go */
		if (peak > task->peak)
			task->peak = peak;
	}
	ptrace(PTRACE_CONT, pid, 0, event ? 0 : signal_number);
}

static volatile sig_atomic_t second_is_over;

static void on_alarm(int signal_number)
{
	(void)signal_number;
	second_is_over = 1;
}

/* Follow everything until the command has ended; its status. */
static int follow(pid_t command)
{
	struct rusage usage;
	struct times now;
	siginfo_t info;
	int status;

	for (;;) {
		if (second_is_over) {
			second_is_over = 0;
			tell_of_the_living();
		}
		/* Looked at before it is taken away: a zombie still has its times. */
		info.si_pid = 0;
		if (waitid(P_ALL, 0, &info, WEXITED | WSTOPPED | WNOWAIT | __WALL) < 0) {
			if (errno == EINTR)
				continue;
			fail("waitid");
		}
		now = (struct times){ -1, -1 };
		if (info.si_code != CLD_TRAPPED && info.si_code != CLD_STOPPED)
			now = times_of(info.si_pid, NULL);
		if (wait4(info.si_pid, &status, __WALL, &usage) != info.si_pid)
			continue;
		if (WIFSTOPPED(status)) {
			stopped(info.si_pid, status, &usage);
			continue;
		}
		ended(info.si_pid, now);
		if (info.si_pid == command)
			return status;
	}
}

int main(int argc, char **argv)
{
	struct sigaction alarm = { .sa_handler = on_alarm };	/* without SA_RESTART: waiting ends */
	struct itimerval second = { { 1, 0 }, { 1, 0 } };
	struct rlimit none = { 0, 0 };
	int status, i;
	pid_t command;

	if (argc < 3) {
		dprintf(2, "usage: maid-profile LOG CMD [ARG...]\n");
		return 125;
	}
	log_file = open(argv[1], O_WRONLY | O_APPEND | O_CLOEXEC);
	if (log_file < 0)
		fail(argv[1]);
	command = start(argv + 2);
	task_of(command);
	/* Our own would keep a pipe open that the command has closed. */
	for (i = 0; i <= 2; i++)
		close(i);
	sigaction(SIGALRM, &alarm, NULL);
	setitimer(ITIMER_REAL, &second, NULL);
	status = follow(command);
	tell_of_the_living();
	if (WIFEXITED(status))
		return WEXITSTATUS(status);
	setrlimit(RLIMIT_CORE, &none);
	signal(WTERMSIG(status), SIG_DFL);
	raise(WTERMSIG(status));
	return 128 + WTERMSIG(status);
}
