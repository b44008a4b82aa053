/* SPDX-License-Identifier: Apache-2.0 */
/*
 * front.h - what the parts of the front share
 *
 *	front.c		the entry point, the baked block, the arguments for QEMU
 *	front_native.c	whether a native program stands in for this one, and its execution
 *	front_rules.c	a record of the store: when the native program must not be used
 *	front_elf.c	the build-id of a program
 *	front_calls.h	the kernel's calls and structures
 *
 * All of it runs in every emulated process, setuid ones too, before QEMU: no
 * libc, no writable data, no relocations, no allocation. Each function is
 * bounded by the size of what it is given; what the kernel put on the stack
 * (argv, envp, auxv) is bounded by the kernel.
 */
#ifndef MAID_FRONT_H
#define MAID_FRONT_H

#include <stddef.h>
#include <stdint.h>

typedef uintptr_t word;

/* Where the store is mounted, and the log of maid's own steps. */
#define STORE		"/dev/.maid"
#define LOG		"/dev/.maid-log"

/* The largest record, and how much of a program is looked at in one piece. */
#define RECORD_SIZE	4096
#define WINDOW_SIZE	4096
/* Build-ids have 16 or 20 bytes; --build-id=0x... can make them longer. */
#define ID_SIZE		64
/* The most arguments that one start can have replaced. */
#define MAX_REPLACED	4

/* uapi/linux/auxvec.h, uapi/linux/binfmts.h */
#define AT_NULL			0
#define AT_EXECFD		2
#define AT_FLAGS		8
#define AT_UID			11
#define AT_EUID			12
#define AT_GID			13
#define AT_EGID			14
#define AT_SECURE		23
#define AT_FLAGS_PRESERVE_ARGV0	1

/*
 * A process as the kernel made it: the vectors on its stack. With flag P, argv is
 * the interpreter, the path of the program, and the caller's argv.
 */
struct process {
	size_t argc;
	char **argv;
	char **envp;
	const word *auxv;
};

/* The root of the store, as stat shows it. */
struct store {
	uint64_t device;
	uint64_t inode;
};

struct build_id {
	size_t size;	/* 0: there is none */
	unsigned char bytes[ID_SIZE];
};

/* What the rules of a record want: strings lie in the record or in argv. */
struct stand_in {
	const char *program;
	const char *inserted;	/* goes after argv[0], or NULL */
	size_t replaced;
	struct {
		char **slot;
		const char *text;
	} replacement[MAX_REPLACED];
};

/*
 * Executes the native program that stands in for @process; returns, with
 * everything as it was, where QEMU has to run it.
 */
void native(const struct process *process, const struct store *store);

/*
 * Reads the rules in @record (@size bytes) for @process, whose program is open
 * as @file (-1 where the kernel did not pass it). Returns whether the native
 * program may be used, and then fills in @wanted. Changes nothing but @buffer,
 * WINDOW_SIZE bytes to work in.
 */
int rules_allow(const char *record, size_t size, const struct process *process, int file,
		unsigned char *buffer, struct stand_in *wanted);

/* Whether nothing in @envp forbids native programs altogether. */
int environment_allows(char *const *envp);

/*
 * Reads the build-id of the ELF file that is open as @file, with @buffer
 * (WINDOW_SIZE bytes) to work in. The file's offset stays where it is.
 */
void build_id_of_file(int file, unsigned char *buffer, struct build_id *id);

/* The same for the regular file that @path leads to. */
void build_id_of_path(const char *path, unsigned char *buffer, struct build_id *id);

/* Writes @id in lower-case hexadecimal and a 0 to @text, 2 * ID_SIZE + 1 bytes. */
void build_id_text(const struct build_id *id, char *text);

/* What @auxv says about @type, or @otherwise. */
static inline word auxiliary(const word *auxv, word type, word otherwise)
{
	for (; auxv[0] != AT_NULL; auxv += 2)
		if (auxv[0] == type)
			return auxv[1];
	return otherwise;
}

static inline int equal(const char *a, const char *b)
{
	while (*a && *a == *b)
		a++, b++;
	return *a == *b;
}

static inline int starts(const char *text, const char *prefix)
{
	while (*prefix)
		if (*text++ != *prefix++)
			return 0;
	return 1;
}

static inline size_t length(const char *text)
{
	size_t n = 0;

	while (text[n])
		n++;
	return n;
}

static inline int ends(const char *text, const char *suffix)
{
	size_t n = length(text), m = length(suffix);

	return n >= m && equal(text + n - m, suffix);
}

static inline int contains(const char *text, const char *part)
{
	for (;; text++) {
		if (starts(text, part))
			return 1;
		if (!*text)
			return 0;
	}
}

/* The value of the environment's string @variable, or NULL when it has no "=". */
static inline const char *value(const char *variable)
{
	while (*variable && *variable != '=')
		variable++;
	return *variable ? variable + 1 : NULL;
}

#endif
