/*
 * maid-init: the first process of a step's container. It starts the command, reaps what is orphaned, and
 * ends when the command does.
 *
 *   maid-init CMD [ARG...]
 *
 * A process that is the first of its pid namespace cannot die of a signal that it or its children send
 * (pid_namespaces(7)): a command in its place that aborts would not, and QEMU, which ends an emulated
 * program by sending itself the signal, would wait for ever. Here the command is an ordinary process.
 *
 * How it ended goes to descriptor 3, which maid-step reads: "s N" died of signal N, "x ERRNO" could not be
 * executed; nothing: it exited, and the exit status is its own. Where that descriptor is not open (in the
 * containers of other engines, for maid-runtime) a command that could not be executed is told on standard
 * error. The exit status is a shell's: 127 not found, 126 cannot be executed, 128+N died of signal N.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define REPORT 3

extern char **environ;

static void report(char what, int value)
{
	char line[32];
	int length = snprintf(line, sizeof(line), "%c %d\n", what, value);

	(void)!write(REPORT, line, length);
}

/* Why @name could not be executed, for people, as the command itself might have said it. */
static void tell(const char *name, int error)
{
	bool is_missing = error == ENOENT && !strchr(name, '/');

	dprintf(STDERR_FILENO, "exec: %s: %s\n", name, is_missing ? "not found in PATH" : strerror(error));
}

/* As execvp(3), but what is no program is an error and not a shell script. Returns errno. */
static int execute(char **argv)
{
	const char *path = getenv("PATH"), *end;
	char file[4096];
	int error = ENOENT;

	if (strchr(argv[0], '/')) {
		execve(argv[0], argv, environ);
		return errno;
	}
	for (; path && *path; path = *end ? end + 1 : end) {
		end = strchrnul(path, ':');
		if (snprintf(file, sizeof(file), "%.*s/%s", (int)(end - path), path, argv[0]) >= (int)sizeof(file))
			continue;
		execve(file, argv, environ);
		if (errno != ENOENT && errno != ENOTDIR)
			error = errno;
	}
	return error;
}

int main(int argc, char **argv)
{
	pid_t command, child;
	int status, error;
	bool is_heard;

	if (argc < 2)
		return 125;
	is_heard = fcntl(REPORT, F_SETFD, FD_CLOEXEC) == 0;
	command = fork();
	if (command < 0)
		return 125;
	if (command == 0) {
		error = execute(argv + 1);
		if (is_heard)
			report('x', error);
		else
			tell(argv[1], error);
		_exit(error == ENOENT || error == ENOTDIR ? 127 : 126);
	}
	/* Its own standard streams would keep a pipe open that the command has closed. */
	close(0);
	close(1);
	close(2);
	do {
		child = wait(&status);
	} while (child != command && (child > 0 || errno == EINTR));
	if (child != command)
		return 125;
	if (WIFSIGNALED(status)) {
		if (is_heard)
			report('s', WTERMSIG(status));
		return 128 + WTERMSIG(status);
	}
	return WEXITSTATUS(status);
}
