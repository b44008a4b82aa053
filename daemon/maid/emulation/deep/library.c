/*
 * The shared library of the dynamic check. The program takes a function, a variable and a function pointer from
 * it; it calls back into the program; its constructor must have run before the program starts.
 */

#define SYSCALL_NO_TLS 1
#include <sys/syscall.h>

#include "syscall_arch.h"

#define PUBLIC __attribute__((visibility("default")))

extern int deep_from_program(int);

PUBLIC int deep_variable = 1;
static int constructed;
static int zeroed[4096];

__attribute__((constructor)) static void construct(void)
{
	constructed = 7;
}

PUBLIC int deep_twice(int value)
{
	return 2 * value;
}

/* A pointer in data: the loader has to write the function's address here. */
PUBLIC int (*deep_pointer)(int) = deep_twice;

PUBLIC int deep_library(int value)
{
	for (int i = 0; i < 4096; i++)
		if (zeroed[i])
			return -1;
	return deep_from_program(value) + deep_variable + constructed;
}

PUBLIC void deep_write(const char *text)
{
	long size = 0;
	while (text[size])
		size++;
	__syscall3(SYS_write, 1, (long)text, size);
}

PUBLIC void deep_exit(int status)
{
	for (;;)
		__syscall1(SYS_exit_group, status);
}
