// SPDX-License-Identifier: Apache-2.0
/*
 * maid-runtime on a bundle (bundle.h), as `runtime create` has it. Where it adds its mount, the new
 * config.json is the old one with one more mount at the end of the list and no other byte changed.
 */
#define main runtime_main
#include "runtime.c"
#undef main
#include "bundle.h"

static size_t count(struct json array)
{
	struct json each = { 0 };
	size_t found = 0;

	while (json_next(array, &each))
		found++;
	return found;
}

static void compare(const struct container *old)
{
	static char text[1 << 20];
	int file = open(fuzz_place("bundle/config.json"), O_RDONLY | O_CLOEXEC);
	struct json config, mounts, before, each = { 0 }, last;
	char destination[64];
	long length;
	size_t same, added;

	MUST(file >= 0);
	length = read_all(file, text, sizeof(text));
	close(file);
	MUST(length > (long)old->length);
	MUST(json_read(text, (size_t)length, &config) && json_member(config, "mounts", &mounts));
	MUST(json_member(old->config, "mounts", &before) && count(mounts) == count(before) + 1);
	while (json_next(mounts, &each))
		last = each;
	MUST(json_member(last, "destination", &each) && json_string(each, destination, sizeof(destination)));
	MUST(!strcmp(destination, "/dev/" STORE_MOUNT));
	same = (size_t)(before.end - 1 - old->text);
	added = (size_t)length - old->length;
	MUST(!memcmp(text, old->text, same) && !memcmp(text + same + added, old->text + same, old->length - same));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct container container = { .bundle = -1, .root = -1 };
	static char store[4096], bundle[4096];
	const char *why_not;

	make_bundle(data, size);
	strcpy(store, fuzz_place("store"));
	strcpy(bundle, fuzz_place("bundle"));
	why_not = open_container(bundle, &container);
	if (!why_not)
		why_not = is_to_be_accelerated(&container);
	if (!why_not && !add_mount(&container, store))
		compare(&container);
	close_container(&container);
	return 0;
}
