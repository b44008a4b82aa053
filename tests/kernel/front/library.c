// SPDX-License-Identifier: Apache-2.0
/*
 * library.c - an "interpreter" with a C library, as QEMU is one
 *
 * Prints its arguments, one to a line, then whether the environment, the
 * auxiliary vector, the heap and thread-local storage work, then its memory map.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <unistd.h>

static __thread int local = 42;
static char *const pointer_to_relocate[] = { "relocated" };

int main(int argc, char **argv)
{
	char line[4096], *heap;
	const char *home = getenv("HOME");
	FILE *maps;

	for (int i = 0; i < argc; i++)
		printf("argument %s\n", argv[i]);
	printf("environment %s\n", home ? home : "");
	printf("page %lu\n", getauxval(AT_PAGESZ));
	printf("local %d\n", local);
	printf("%s\n", *(char *const volatile *)pointer_to_relocate);
	heap = sbrk(0);
	if (sbrk(1 << 24) == (void *)-1)
		printf("sbrk: %s\n", strerror(errno));
	else
		memset(heap, 1, 1 << 24);
	for (int i = 0; i < 1000; i++)
		memset(malloc(i * 100 + 1), i, i * 100 + 1);
	printf("brk %lx\n", (unsigned long)heap);
	maps = fopen("/proc/self/maps", "r");
	while (maps && fgets(line, sizeof(line), maps))
		printf("map %s", line);
	return 0;
}
