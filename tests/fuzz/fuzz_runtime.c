// SPDX-License-Identifier: Apache-2.0
/*
 * maid-runtime on a bundle (bundle.h), as `runtime create` has it. Where it adds its mount, the new
 * config.json is the old one with one more mount at the end of the list and no other byte changed; where it
 * adds maid-init, there is besides one word more before the command.
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

static struct json arguments_of(struct json config)
{
	struct json process, arguments;

	MUST(json_member(config, "process", &process) && json_member(process, "args", &arguments));
	return arguments;
}

static void compare(const struct container *old, const char *point, const char *word)
{
	static char text[1 << 20], known[4096];
	int file = open(fuzz_place("bundle/config.json"), O_RDONLY | O_CLOEXEC);
	struct json config, mounts, before, each = { 0 }, last, first = { 0 };
	struct { const char *at; size_t length; } added[2] = { 0 };
	const char *now = text, *then = old->text;
	size_t length, more;
	long all;
	int i, word_at;

	MUST(file >= 0);
	all = read_all(file, text, sizeof(text));
	close(file);
	more = word ? strlen(word) + 3 : 0;	/* its quotes and the comma */
	MUST(all > (long)(old->length + more));
	MUST(json_read(text, (size_t)all, &config) && json_member(config, "mounts", &mounts));
	MUST(json_member(old->config, "mounts", &before) && count(mounts) == count(before) + 1);
	while (json_next(mounts, &each))
		last = each;
	MUST(json_member(last, "destination", &each) && json_string(each, known, sizeof(known)));
	MUST(!strcmp(known, point));
	word_at = 1;
	added[0].at = before.end - 1;
	added[0].length = (size_t)all - old->length - more;
	if (word) {
		MUST(json_next(arguments_of(config), &first) && json_string(first, known, sizeof(known)));
		MUST(!strcmp(known, word));
		MUST(count(arguments_of(config)) == count(arguments_of(old->config)) + 1);
		first = (struct json){ 0 };
		MUST(json_next(arguments_of(old->config), &first));
		if (first.text < before.end) {
			added[1] = added[0];
			word_at = 0;
		}
		added[word_at].at = first.text;
		added[word_at].length = more;
	}
	for (i = 0; i < (word ? 2 : 1); i++) {
		length = (size_t)(added[i].at - then);
		MUST(!memcmp(now, then, length));
		now += length + added[i].length;
		then += length;
	}
	MUST(!memcmp(now, then, old->length - (size_t)(then - old->text)));
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
	if (!why_not && !add_store(&container, store))
		compare(&container, "/dev/" STORE_MOUNT, NULL);
	/* Of the same text once more; that the store is there is not looked at. */
	if (!why_not && !add_init(&container, "/maid-init"))
		compare(&container, "/dev/" INIT_MOUNT, "/dev/" INIT_MOUNT);
	close_container(&container);
	return 0;
}
