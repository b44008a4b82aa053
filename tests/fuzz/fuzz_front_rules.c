// SPDX-License-Identifier: Apache-2.0
/*
 * The front's rules: the input is a record of the store, the arguments and the environment, with a 0xff
 * between them; of the latter two each string ends with a zero byte. Paths in records are root's, but the
 * front must not rely on it: what it would execute lies in the store, and nothing is changed.
 */
#include "front_elf.c"
#include "front_rules.c"
#undef AT_FDCWD
#undef AT_SYMLINK_NOFOLLOW
#include "fuzz.h"

#define MAX_STRINGS 64

/* The strings as a vector that ends with NULL, after @first of the caller's own. */
static char **vector(const uint8_t *data, size_t size, size_t *count)
{
	char **made = calloc(MAX_STRINGS + 1, sizeof(*made));

	for (*count = 0; size && *count < MAX_STRINGS; (*count)++) {
		size_t length;
		uint8_t *part = fuzz_part(&data, &size, 0, &length);

		made[*count] = malloc(length + 1);
		memcpy(made[*count], part, length);
		made[*count][length] = 0;
		free(part);
	}
	return made;
}

static void release(char **strings)
{
	for (char **each = strings; *each; each++)
		free(*each);
	free(strings);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	size_t length, argc, envc, before, after_it;
	uint8_t *record = fuzz_part(&data, &size, 0xff, &length), *part;
	unsigned char *buffer = malloc(WINDOW_SIZE);
	char **argv, **envp, **copy;
	struct stand_in wanted = { 0 };

	part = fuzz_part(&data, &size, 0xff, &before);
	argv = vector(part, before, &argc);
	free(part);
	envp = vector(data, size, &envc);
	copy = malloc((argc + 1) * sizeof(*copy));
	memcpy(copy, argv, (argc + 1) * sizeof(*argv));
	/* The kernel's: the interpreter, the path and the caller's argv. */
	if (argc >= 3 && length <= RECORD_SIZE) {
		struct process process = { argc, argv, envp, NULL };
		int is_allowed = environment_allows(envp);

		if (rules_allow((char *)record, length, &process, -1, buffer, &wanted) && is_allowed) {
			const char *first = (char *)record, *end = first + length;

			MUST(wanted.program >= first && wanted.program < end);
			MUST(!strncmp(wanted.program, STORE "/", strlen(STORE) + 1));
			MUST(!strstr(wanted.program, "/../"));
			MUST(!wanted.inserted || (wanted.inserted >= first && wanted.inserted < end));
			MUST(wanted.replaced <= MAX_REPLACED);
			for (size_t i = 0; i < wanted.replaced; i++) {
				MUST(wanted.replacement[i].slot > argv + 2 &&
				     wanted.replacement[i].slot < argv + argc);
				MUST(wanted.replacement[i].text >= first && wanted.replacement[i].text < end);
			}
		}
		after_it = argc;
		MUST(!memcmp(argv, copy, (after_it + 1) * sizeof(*argv)));
	}
	free(copy);
	free(buffer);
	free(record);
	release(argv);
	release(envp);
	return 0;
}
