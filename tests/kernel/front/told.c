// SPDX-License-Identifier: Apache-2.0
/*
 * told.c - the same program natively and emulated: says which one ran and what it was given
 *
 *	told exit N		exits with N
 *	told exec FILE ...	executes FILE with these arguments, FILE as argv[0]
 *	told limit N M FILE ...	the same with M as the limit of resource N
 *	told ...		prints its machine, arguments, environment, ids and open files
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

extern char **environ;

#if defined(__x86_64__)
#define MACHINE "x86_64"
#elif defined(__aarch64__)
#define MACHINE "aarch64"
#else
#define MACHINE "other"
#endif

int main(int argc, char **argv)
{
	if (argc > 2 && !strcmp(argv[1], "exit"))
		return atoi(argv[2]);
	if (argc > 2 && !strcmp(argv[1], "exec")) {
		execv(argv[2], argv + 2);
		perror(argv[2]);
		return 9;
	}
	if (argc > 4 && !strcmp(argv[1], "limit")) {
		struct rlimit limit = { strtoul(argv[3], NULL, 0), strtoul(argv[3], NULL, 0) };

		if (setrlimit(atoi(argv[2]), &limit) == 0)
			execv(argv[4], argv + 4);
		perror(argv[4]);
		return 9;
	}
	printf("machine " MACHINE "\n");
	for (int i = 0; i < argc; i++)
		printf("argument %s\n", argv[i]);
	for (char **e = environ; *e; e++)
		printf("environment %s\n", *e);
	printf("ids %d %d\n", getuid(), geteuid());
	for (int i = 0; i < 64; i++)
		if (fcntl(i, F_GETFD) >= 0)
			printf("file %d\n", i);
	return 0;
}
