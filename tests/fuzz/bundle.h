/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bundle.h - an OCI bundle for the targets about oci.c. The input is a config.json, a zero byte, and
 * what /bin/sh of its root is; the bundle is $FUZZ_PLACE/bundle, the store $FUZZ_PLACE/store.
 */
#ifndef MAID_FUZZ_BUNDLE_H
#define MAID_FUZZ_BUNDLE_H

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "fuzz.h"

static void fuzz_write(const char *name, const uint8_t *data, size_t size)
{
	int file = open(fuzz_place(name), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0755);

	MUST(file >= 0 && write(file, data, size) == (ssize_t)size);
	close(file);
}

static void make_bundle(const uint8_t *data, size_t size)
{
	static const char *const directories[] = { "bundle", "bundle/root", "bundle/root/bin",
						   "bundle/root/dev", "store", "store/id" };
	static int is_made;
	uint8_t *config;
	size_t length;

	for (size_t i = 0; !is_made && i < sizeof(directories) / sizeof(*directories); i++)
		mkdir(fuzz_place(directories[i]), 0755);
	is_made = 1;
	config = fuzz_part(&data, &size, 0, &length);
	fuzz_write("bundle/config.json", config, length);
	fuzz_write("bundle/root/bin/sh", data, size);
	free(config);
}

/* Descriptors that open_container left: there is one container in a program's life, but many in ours. */
static void close_container(const struct container *container)
{
	if (container->bundle >= 0)
		close(container->bundle);
	if (container->root >= 0)
		close(container->root);
}

#endif
