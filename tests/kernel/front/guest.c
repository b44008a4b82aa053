// SPDX-License-Identifier: Apache-2.0
/*
 * guest.c - a foreign program that shows what reaches it through QEMU
 *
 *	guest cat		copies standard input to standard output
 *	guest exit N		exits with N
 *	guest signal N		sends itself signal N
 *	guest ...		prints arguments, environment, ids and auxiliary vector
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <unistd.h>

extern char **environ;

/* Those whose value is not an address; 51 is AT_MINSIGSTKSZ. */
static const unsigned long types[] = { AT_HWCAP, AT_HWCAP2, AT_PAGESZ, AT_CLKTCK, AT_FLAGS, AT_UID,
				       AT_EUID, AT_GID, AT_EGID, AT_SECURE, AT_PHNUM, AT_PHENT, 51 };

int main(int argc, char **argv)
{
	char data[65536];
	ssize_t size;

	if (argc > 1 && !strcmp(argv[1], "cat")) {
		while ((size = read(0, data, sizeof(data))) > 0)
			if (write(1, data, size) != size)
				return 9;
		return size < 0;
	}
	if (argc > 2 && !strcmp(argv[1], "exit"))
		return atoi(argv[2]);
	if (argc > 2 && !strcmp(argv[1], "signal")) {
		raise(atoi(argv[2]));
		return 9;
	}
	for (int i = 0; i < argc; i++)
		printf("argument %s\n", argv[i]);
	for (char **e = environ; *e; e++)
		printf("environment %s\n", *e);
	printf("ids %d %d\n", getuid(), geteuid());
	for (size_t i = 0; i < sizeof(types) / sizeof(*types); i++)
		printf("auxiliary %lu %lx\n", types[i], getauxval(types[i]));
	return 0;
}
