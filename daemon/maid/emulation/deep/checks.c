/*
 * The program of `maid check --deep`: `checks NAME` does one check, prints "NAME: ok" and exits with 0, or
 * says what went wrong and exits with 1. It is linked statically, so that it needs nothing in its root directory.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static const char *check;

static _Noreturn void fail(const char *what)
{
	if (errno)
		printf("%s: %s: %s\n", check, what, strerror(errno));
	else
		printf("%s: %s\n", check, what);
	exit(1);
}

#define REQUIRE(condition, what)    \
	do {                        \
		if (!(condition))   \
			fail(what); \
		errno = 0;          \
	} while (0)

/* Status of a child, with all its own checks. */
static int wait_for(pid_t pid)
{
	int status;
	REQUIRE(waitpid(pid, &status, 0) == pid, "waitpid");
	return status;
}

static void fork_and_exec(void)
{
	int ends[2], status;
	char answer[64] = "";
	REQUIRE(pipe(ends) == 0, "pipe");
	pid_t pid = fork();
	REQUIRE(pid >= 0, "fork");
	if (pid == 0) {
		dup2(ends[1], 1);
		execl("/checks", "/checks", "answer", "of the child", (char *)0);
		_exit(126);
	}
	close(ends[1]);
	ssize_t size, all = 0;
	while ((size = read(ends[0], answer + all, sizeof answer - 1 - all)) > 0)
		all += size;
	REQUIRE(size == 0, "read from the child");
	status = wait_for(pid);
	REQUIRE(!WIFEXITED(status) || WEXITSTATUS(status) != 126,
		"the child could not execute a program of its own platform");
	REQUIRE(WIFEXITED(status) && WEXITSTATUS(status) == 17, "exit status of the child");
	REQUIRE(strcmp(answer, "answer of the child\n") == 0, "output of the child");

	pid = fork();
	REQUIRE(pid >= 0, "second fork");
	if (pid == 0) {
		raise(SIGKILL);
		_exit(0);
	}
	status = wait_for(pid);
	REQUIRE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL, "signal of a killed child");
}

#define THREADS 6
#define ROUNDS 500

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t condition = PTHREAD_COND_INITIALIZER;
static int started, guarded, counted;
static _Thread_local int mine;

static void *thread(void *argument)
{
	pthread_mutex_lock(&mutex);
	started++;
	pthread_cond_broadcast(&condition);
	while (started < THREADS)
		pthread_cond_wait(&condition, &mutex);
	pthread_mutex_unlock(&mutex);
	for (int i = 0; i < ROUNDS; i++) {
		mine++;
		__atomic_fetch_add(&counted, 1, __ATOMIC_SEQ_CST);
		pthread_mutex_lock(&mutex);
		guarded++;
		pthread_mutex_unlock(&mutex);
	}
	return (void *)((intptr_t)argument + mine);
}

static void threads(void)
{
	pthread_t all[THREADS];
	for (intptr_t i = 0; i < THREADS; i++) {
		errno = pthread_create(&all[i], 0, thread, (void *)(i * 10000));
		REQUIRE(!errno, "pthread_create");
	}
	for (intptr_t i = 0; i < THREADS; i++) {
		void *result;
		errno = pthread_join(all[i], &result);
		REQUIRE(!errno, "pthread_join");
		REQUIRE((intptr_t)result == i * 10000 + ROUNDS, "result of a thread");
	}
	REQUIRE(counted == THREADS * ROUNDS, "atomic additions were lost");
	REQUIRE(guarded == THREADS * ROUNDS, "additions under a mutex were lost");
	REQUIRE(mine == 0, "a thread changed another's thread-local variable");
}

static volatile sig_atomic_t caught, caught_pid, on_stack;
static void *volatile fault;
static char *page;
static long page_size;
static char stack[65536];

static void on_signal(int number, siginfo_t *info, void *context)
{
	char here;
	(void)context;
	caught = number;
	caught_pid = info->si_pid;
	on_stack = &here >= stack && &here < stack + sizeof stack;
	if (number == SIGSEGV) {
		if (fault) /* The second time nothing was mended: end by the default action. */
			signal(SIGSEGV, SIG_DFL);
		fault = info->si_addr;
		mprotect(page, page_size, PROT_READ | PROT_WRITE);
	}
}

static void handle(int number, int flags)
{
	struct sigaction action = { .sa_sigaction = on_signal, .sa_flags = SA_SIGINFO | flags };
	sigemptyset(&action.sa_mask);
	REQUIRE(sigaction(number, &action, 0) == 0, "sigaction");
}

static void signals(void)
{
	handle(SIGUSR1, 0);
	REQUIRE(kill(getpid(), SIGUSR1) == 0, "kill");
	REQUIRE(caught == SIGUSR1, "a handler was not called");
	REQUIRE(caught_pid == getpid(), "the handler was told another sender");

	/* Blocked, pending, delivered. */
	sigset_t set, pending;
	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	caught = 0;
	REQUIRE(sigprocmask(SIG_BLOCK, &set, 0) == 0, "sigprocmask");
	raise(SIGUSR1);
	REQUIRE(!caught, "a blocked signal was delivered");
	REQUIRE(sigpending(&pending) == 0 && sigismember(&pending, SIGUSR1) == 1,
		"a blocked signal is not pending");
	sigprocmask(SIG_UNBLOCK, &set, 0);
	REQUIRE(caught == SIGUSR1, "a pending signal was not delivered");

	/* A timer interrupts a call that waits. */
	int ends[2];
	char byte;
	struct itimerval soon = { .it_value = { .tv_usec = 20000 } };
	handle(SIGALRM, 0);
	REQUIRE(pipe(ends) == 0, "pipe");
	REQUIRE(setitimer(ITIMER_REAL, &soon, 0) == 0, "setitimer");
	errno = 0;
	if (read(ends[0], &byte, 1) != -1 || errno != EINTR)
		fail("a signal did not interrupt read");
	REQUIRE(caught == SIGALRM, "no SIGALRM");

	/* A fault, handled on a stack of its own and mended there: the write is done again and succeeds. */
	stack_t other = { .ss_sp = stack, .ss_size = sizeof stack };
	REQUIRE(sigaltstack(&other, 0) == 0, "sigaltstack");
	page_size = sysconf(_SC_PAGESIZE);
	page = mmap(0, page_size, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	REQUIRE(page != MAP_FAILED, "mmap");
	handle(SIGSEGV, SA_ONSTACK);
	*(volatile char *)(page + 5) = 1;
	REQUIRE(caught == SIGSEGV, "a write to a read-only page did nothing");
	REQUIRE(page[5] == 1, "a write that was mended by a handler is lost");
	/* To the page: s390 machines report no more (Principles of Operation, translation-exception id). */
	REQUIRE((char *)((uintptr_t)fault & -page_size) == page,
		"SIGSEGV was told another address");
	REQUIRE(on_stack, "the handler did not run on the alternate stack");

	/* From a child to its parent. */
	sigemptyset(&set);
	handle(SIGUSR2, SA_RESTART);
	pid_t pid = fork();
	REQUIRE(pid >= 0, "fork");
	if (pid == 0)
		_exit(kill(getppid(), SIGUSR2) ? 1 : 0);
	REQUIRE(wait_for(pid) == 0, "the child could not send a signal");
	REQUIRE(caught == SIGUSR2 && caught_pid == pid, "the child's signal did not arrive");
}

#define GIB (1LL << 30)

static void largefile(void)
{
	struct stat status;
	char text[8] = "";
	const off_t far = 5 * GIB + 12345;
	int fd = open("/large", O_RDWR | O_CREAT | O_TRUNC, 0600);
	REQUIRE(fd >= 0, "create /large");
	unlink("/large");
	REQUIRE(sizeof(off_t) == 8, "off_t has not 64 bits");
	REQUIRE(pwrite(fd, "far out", 7, far) == 7, "pwrite beyond 5 GiB");
	REQUIRE(fstat(fd, &status) == 0, "fstat of a file beyond 5 GiB");
	REQUIRE(status.st_size == far + 7, "size of a file beyond 5 GiB");
	REQUIRE(lseek(fd, -7, SEEK_END) == far, "lseek from the end beyond 5 GiB");
	REQUIRE(read(fd, text, 7) == 7 && !strcmp(text, "far out"), "read beyond 5 GiB");
	REQUIRE(lseek(fd, 3 * GIB, SEEK_SET) == 3 * GIB, "lseek to 3 GiB");
	REQUIRE(lseek(fd, 0, SEEK_CUR) == 3 * GIB, "position at 3 GiB");
	REQUIRE(read(fd, text, 1) == 1 && text[0] == 0, "read of the hole at 3 GiB");
	REQUIRE(ftruncate(fd, 3 * GIB) == 0 && fstat(fd, &status) == 0 && status.st_size == 3 * GIB,
		"ftruncate to 3 GiB");
	close(fd);
}

/* Apart from the others, because QEMU 7.2 cuts the offset of mmap2 to 32 bits (measured). */
static void largemap(void)
{
	const off_t far = 5 * GIB;
	int fd = open("/largemap", O_RDWR | O_CREAT | O_TRUNC, 0600);
	REQUIRE(fd >= 0, "create /largemap");
	unlink("/largemap");
	REQUIRE(pwrite(fd, "near", 4, far & 0xffffffff) == 4, "pwrite at 1 GiB");
	REQUIRE(pwrite(fd, "far", 4, far) == 4, "pwrite at 5 GiB");
	char *mapped = mmap(0, 65536, PROT_READ, MAP_SHARED, fd, far);
	REQUIRE(mapped != MAP_FAILED, "mmap at 5 GiB");
	REQUIRE(strcmp(mapped, "near"), "mmap at 5 GiB maps what lies at 1 GiB");
	REQUIRE(!strcmp(mapped, "far"), "mmap at 5 GiB maps something else");
	close(fd);
}

/*
 * What a 32-bit program without large-file support meets: directory offsets that do not fit. An emulator on a
 * 64-bit host is given 64-bit offsets by ext4 and others, and glibc's readdir then says EOVERFLOW, "Value too large
 * for defined data type". The record is the kernel's linux_dirent64: inode and offset 64 bits, length 16, type 8.
 */
static void directory(void)
{
	static _Alignas(8) char buffer[32768];
	int fd = open("/", O_RDONLY | O_DIRECTORY), entries = 0;
	REQUIRE(fd >= 0, "open /");
	long size;
	while ((size = syscall(SYS_getdents64, fd, buffer, sizeof buffer)) > 0)
		for (long at = 0; at < size; entries++) {
			uint64_t inode, offset;
			uint16_t length;
			memcpy(&inode, buffer + at, 8);
			memcpy(&offset, buffer + at + 8, 8);
			memcpy(&length, buffer + at + 16, 2);
			REQUIRE(length >= 19, "length of a directory entry");
			if (sizeof(long) == 4 && (inode >> 32 || offset >> 31)) {
				printf("directory: %s %llu needs 64 bits\n",
				       inode >> 32 ? "inode" : "offset",
				       (unsigned long long)(inode >> 32 ? inode : offset));
				exit(1);
			}
			at += length;
		}
	REQUIRE(size == 0, "getdents64");
	REQUIRE(entries > 3, "entries are missing in /");
}

/* Twice, so that both a 32-bit time and a wrong clock are noticed: the calendar, and that it moves on. */
static void clock_check(void)
{
	struct timespec first, second, pause = { .tv_nsec = 20000000 };
	REQUIRE(sizeof(time_t) == 8, "time_t has not 64 bits");
	REQUIRE(time(0) > 1700000000, "the clock is in the past");
	REQUIRE(clock_gettime(CLOCK_MONOTONIC, &first) == 0, "clock_gettime");
	REQUIRE(nanosleep(&pause, 0) == 0, "nanosleep");
	REQUIRE(clock_gettime(CLOCK_MONOTONIC, &second) == 0, "clock_gettime");
	long long passed = (second.tv_sec - first.tv_sec) * 1000000000LL + second.tv_nsec - first.tv_nsec;
	REQUIRE(passed >= 20000000, "a pause of 20 ms took less by the monotonic clock");
}

int main(int argc, char **argv)
{
	static const struct {
		const char *name;
		void (*function)(void);
	} checks[] = {
		{ "forkexec", fork_and_exec }, { "threads", threads },	   { "signals", signals },
		{ "largefile", largefile },    { "largemap", largemap },   { "directory", directory },
		{ "clock", clock_check },
	};
	check = argc > 1 ? argv[1] : "";
	setvbuf(stdout, 0, _IONBF, 0);
	if (!strcmp(check, "answer")) {
		printf("answer %s\n", argc > 2 ? argv[2] : "");
		return 17;
	}
	if (!strcmp(check, "ids")) {
		printf("ids: %ld %ld\n", (long)getuid(), (long)geteuid());
		return 0;
	}
	/* As the interpreter of a script: what the kernel makes of `#!/checks script` and one argument. */
	if (!strcmp(check, "script")) {
		printf("script: %d %s %s\n", argc, argc > 2 ? argv[2] : "", argc > 3 ? argv[3] : "");
		return 0;
	}
	if (!strcmp(check, "argv0")) {
		printf("argv0: %s\n", argv[0]);
		return 0;
	}
	for (size_t i = 0; i < sizeof checks / sizeof *checks; i++)
		if (!strcmp(check, checks[i].name)) {
			checks[i].function();
			printf("%s: ok\n", check);
			return 0;
		}
	printf("unknown check: %s\n", check);
	return 2;
}
