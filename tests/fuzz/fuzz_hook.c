// SPDX-License-Identifier: Apache-2.0
/*
 * maid-hook from the state on its standard input to its last look before it would mount: the input is
 * the state, a 0x01 byte, and a bundle (bundle.h). No /dev in it is a file system of its own, so nothing is
 * ever mounted.
 */
#define main hook_main
#include "hook.c"
#undef main
#include "bundle.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct container container = { .bundle = -1, .root = -1 };
	static int input = -1;
	char bundle[PATH_MAX];
	uint8_t *state;
	size_t length;

	state = fuzz_part(&data, &size, 1, &length);
	fuzz_file(&input, state, length);
	MUST(dup2(input, STDIN_FILENO) == STDIN_FILENO);
	free(state);
	make_bundle(data, size);
	if (read_state(bundle, sizeof(bundle)))
		strcpy(bundle, fuzz_place("bundle"));
	MUST(strlen(bundle) < sizeof(bundle));
	if (!open_container(bundle, &container) && !is_to_be_accelerated(&container)) {
		int devices = -1;

		MUST(open_devices(container.root, &devices));
		if (devices >= 0)
			close(devices);
	}
	close_container(&container);
	return 0;
}
