// SPDX-License-Identifier: Apache-2.0
/* launch.c - executes the program that it is given with no arguments at all, not even argv[0] */
#include <stdio.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	char *const nothing[] = { NULL };

	if (argc == 2)
		execve(argv[1], nothing, nothing);
	perror("launch");
	return 9;
}
