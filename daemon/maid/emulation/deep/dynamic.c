/*
 * The program of the dynamic check: PT_INTERP names the loader, DT_NEEDED the library. It has no system call of
 * its own, so that it can say nothing unless the loader has bound it to the library.
 */

#include <stddef.h>

#define START "_start"
#include "crt_arch.h"

#define PUBLIC __attribute__((visibility("default")))

extern int deep_variable;
extern int (*deep_pointer)(int);
int deep_twice(int);
int deep_library(int);
void deep_write(const char *);
void deep_exit(int);

PUBLIC int deep_from_program(int value)
{
	return value + 100;
}

/* Called by crt_arch.h with the stack as the kernel made it: argc, argv, environment. */
void _start_c(size_t *sp)
{
	deep_variable = 1000;
	if (!*sp || !sp[1])
		deep_write("dynamic: no arguments on the stack\n");
	else if (deep_library(5) != 1112)
		deep_write("dynamic: program and library do not see one another's symbols\n");
	else if (deep_pointer != deep_twice || deep_pointer(21) != 42)
		deep_write("dynamic: a function has two addresses\n");
	else {
		deep_write("dynamic: ok\n");
		deep_exit(0);
	}
	deep_exit(1);
}
