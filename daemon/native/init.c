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
 * executed; nothing: it exited, and the exit status is its own.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
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

	/* Nobody listens where the runtime was not started by maid-step; the exit status says it too. */
	if (write(REPORT, line, length) < 0)
		return;
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

	if (argc < 2)
		return 125;
	fcntl(REPORT, F_SETFD, FD_CLOEXEC);
	command = fork();
	if (command < 0)
		return 125;
	if (command == 0) {
		error = execute(argv + 1);
		report('x', error);
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
		report('s', WTERMSIG(status));
		return 128 + WTERMSIG(status);
	}
	return WEXITSTATUS(status);
}
