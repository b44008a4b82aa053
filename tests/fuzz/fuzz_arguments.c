// SPDX-License-Identifier: Apache-2.0
/*
 * The command lines of two programs: maid-runtime's, which are an engine's, and maid-step's options. The
 * input is the arguments, each ended by a zero byte. What bundle_of finds is one of them, or ".".
 */
#include <fcntl.h>
#include <setjmp.h>

#define main runtime_main
#include "runtime.c"
#undef main
/* No descriptor of ours is changed: whoever watches us has some open. */
#define fcntl(file, command, flag) ((file) >= 0 && (file) < 1000 ? 0 : -1)
#include "options.c"
#undef fcntl
#include "fuzz.h"

#define MAX_ARGUMENTS 400

static jmp_buf failed;

void fail(const char *what)
{
	(void)what;
	longjmp(failed, 1);
}

static void one(char **argv, int argc)
{
	struct step step = { .rootfs = -1, .changes = -1, .caller = -1, .store = -1, .owner = -1, .group = -1 };
	struct limits limits = { .network = -1 };
	const char *bundle = bundle_of(argv);
	char **command;
	int is_known = !bundle || !strcmp(bundle, ".");

	for (int i = 1; i < argc && !is_known; i++)
		is_known = bundle >= argv[i] && bundle <= argv[i] + strlen(argv[i]);
	MUST(is_known);
	if (setjmp(failed))
		return;
	command = read_options(argc, argv, &step, &limits);
	MUST(step.bind_count <= MAX_BINDS && limits.cgroup_count <= MAX_CGROUPS);
	MUST(!command || (command > argv && command <= argv + argc && !strcmp(command[-1], "--")));
	MUST(!command || (step.directory && step.rootfs >= 0));
	MUST(limits.timeout >= 0 && step.owner >= -1 && step.group >= -1);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	char *argv[MAX_ARGUMENTS + 2] = { "maid" };
	int argc = 1;

	while (size && argc <= MAX_ARGUMENTS) {
		size_t length;
		uint8_t *part = fuzz_part(&data, &size, 0, &length);

		argv[argc] = malloc(length + 1);
		memcpy(argv[argc], part, length);
		argv[argc++][length] = 0;
		free(part);
	}
	argv[argc] = NULL;
	one(argv, argc);
	while (--argc)
		free(argv[argc]);
	return 0;
}
