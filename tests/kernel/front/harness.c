// SPDX-License-Identifier: Apache-2.0
/*
 * harness.c - the front's parts in an ordinary program, for sanitizers and for other machines
 *
 *	harness ids		for each block of standard input, a file: its build-id
 *	harness rules ROOT	for each three blocks, record, argv and environment (strings, each
 *				ended by a 0): "aside", or the program and the changes. argv is the
 *				kernel's, with the interpreter and the program's path
 *	harness start ROOT FLAGS SECURE UID EUID GID EGID EXECFD PATH ARG...
 *				calls native() in ROOT like the kernel would have started it:
 *				EXECFD "-" for none, else a file that is passed open. Says
 *				"aside" when it came back, or what it left changed
 *
 * A block is a 32-bit length in the machine's order and as many bytes. Each is
 * given to the front in memory of exactly its size.
 */
#define _GNU_SOURCE
#include "../../../daemon/native/front_elf.c"
#include "../../../daemon/native/front_native.c"
#include "../../../daemon/native/front_rules.c"

/* What the front and the C library's headers both define. */
#undef AT_FDCWD
#undef AT_SYMLINK_NOFOLLOW
#undef RLIM_INFINITY
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int chdir(const char *path);
int chroot(const char *path);
int dup(int file);
int close(int file);
long lseek(int file, long offset, int whence);
int memfd_create(const char *name, unsigned int flags);
int ftruncate(int file, long size);
long pwrite(int file, const void *data, size_t size, long offset);

static void fail(const char *what)
{
	perror(what);
	exit(9);
}

static char *block(size_t *size)
{
	uint32_t length;
	char *data;

	if (fread(&length, sizeof(length), 1, stdin) != 1)
		return NULL;
	data = malloc(length ? length : 1);
	if (!data || fread(data, 1, length, stdin) != length)
		fail("block");
	*size = length;
	return data;
}

/* The strings of a block as a vector that ends with NULL, each in memory of its own. */
static char **vector(const char *data, size_t size)
{
	size_t count = 0;
	char **made;

	for (size_t i = 0; i < size; i++)
		count += !data[i];
	made = malloc((count + 1) * sizeof(*made));
	for (size_t i = 0; i < count; i++, data += strlen(data) + 1)
		made[i] = strdup(data);
	made[count] = NULL;
	return made;
}

static void release(char **strings)
{
	for (char **each = strings; *each; each++)
		free(*each);
	free(strings);
}

static void ids(void)
{
	int file = memfd_create("program", 0);
	size_t size;
	char *data;

	while ((data = block(&size))) {
		unsigned char *buffer = malloc(WINDOW_SIZE);
		char text[2 * ID_SIZE + 1];
		struct build_id id;

		if (ftruncate(file, 0) || pwrite(file, data, size, 0) != (long)size ||
		    lseek(file, 7, 0) != 7)
			fail("memfd");
		build_id_of_file(file, buffer, &id);
		if (lseek(file, 0, 1) != 7)
			fail("the file's offset moved");
		build_id_text(&id, text);
		puts(text);
		fflush(stdout);
		free(buffer);
		free(data);
	}
}

static void rules(const char *root)
{
	size_t size, argv_size, envp_size;
	char *record;

	if (chroot(root) || chdir("/"))
		fail(root);
	while ((record = block(&size))) {
		char *argv_data = block(&argv_size), *envp_data = block(&envp_size);
		char **argv = vector(argv_data, argv_size), **envp = vector(envp_data, envp_size);
		unsigned char *buffer = malloc(WINDOW_SIZE);
		struct process process = { 0, argv, envp, NULL };
		struct stand_in wanted;

		if (!environment_allows(envp) ||
		    !rules_allow(record, size, &process, -1, buffer, &wanted)) {
			printf("aside");
		} else {
			printf("%s", wanted.program);
			if (wanted.inserted)
				printf("|insert %s", wanted.inserted);
			for (size_t i = 0; i < wanted.replaced; i++)
				printf("|replace %d %s", (int)(wanted.replacement[i].slot - argv - 2),
				       wanted.replacement[i].text);
		}
		putchar('\n');
		fflush(stdout);
		free(buffer);
		release(argv);
		release(envp);
		free(argv_data);
		free(envp_data);
		free(record);
	}
}

/* Which of the first 64 descriptors are open and close-on-exec, two bits for each. */
static void descriptors(int *found)
{
	for (int i = 0; i < 64; i++)
		found[i] = (int)call(NR_fcntl, i, 1, 0, 0);
}

static void start(char **argument, char **envp)
{
	static const word types[] = { AT_FLAGS, AT_SECURE, AT_UID, AT_EUID, AT_GID, AT_EGID };
	word auxv[2 * (sizeof(types) / sizeof(*types)) + 4], *at = auxv;
	char *root = *argument++, **argv, **copy;
	struct process process;
	struct status status;
	struct store store;
	int before[64], after[64];
	size_t count = 1;

	if (chroot(root) || chdir("/"))
		fail(root);
	for (size_t i = 0; i < sizeof(types) / sizeof(*types); i++, at += 2) {
		at[0] = types[i];
		at[1] = strtoul(*argument++, NULL, 0);
	}
	if (strcmp(*argument, "-")) {
		at[0] = AT_EXECFD;
		at[1] = (word)call_open(*argument, O_RDONLY);
		at += 2;
	}
	at[0] = AT_NULL;
	while (argument[count])
		count++;
	argv = malloc((count + 1) * sizeof(*argv));
	copy = malloc((count + 1) * sizeof(*copy));
	memcpy(argv, argument, (count + 1) * sizeof(*argv));
	argv[0] = "interpreter";
	memcpy(copy, argv, (count + 1) * sizeof(*argv));
	if (!call_stat(STORE, 0, &status))
		memset(&status, 0, sizeof(status));
	store.device = status.device;
	store.inode = status.inode;
	process = (struct process){ count, argv, envp, auxv };
	descriptors(before);
	native(&process, &store);
	descriptors(after);
	puts(memcmp(argv, copy, (count + 1) * sizeof(*argv)) ? "argv changed" :
	     memcmp(before, after, sizeof(before)) ? "files changed" : "aside");
}

int main(int argc, char **argv, char **envp)
{
	if (argc == 2 && !strcmp(argv[1], "ids"))
		ids();
	else if (argc == 3 && !strcmp(argv[1], "rules"))
		rules(argv[2]);
	else if (argc > 9 && !strcmp(argv[1], "start"))
		start(argv + 2, envp);
	else
		return 2;
	return 0;
}
