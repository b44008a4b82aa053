/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What maid-hook and maid-runtime share: they read an OCI bundle and decide whether the native store
 * is to be mounted in its container. Functions that return a text return NULL, or why not.
 */
#ifndef MAID_OCI_H
#define MAID_OCI_H

#include "json.h"

#define STORE "/var/lib/maid/store"	/* where the service has it */
#define SOCKET "/run/maid/io.maid"
#define STORE_MOUNT ".maid"		/* in the container's /dev */
#define INIT_MOUNT ".maid-init"		/* beside it, where maid-init starts the command */
#define CONFIG "config.json"

/* A container that is about to be created. */
struct container {
	int bundle, root;	/* O_PATH descriptors of both directories */
	const char *text;	/* its config.json */
	size_t length;
	struct json config;
};

/* Reads what there is at @file, at most @size bytes; its length, or -1 where it is longer or unreadable. */
long read_all(int file, char *text, size_t size);

/* Opens the bundle, which is a path. There is one container in a program's life: nothing is closed. */
const char *open_container(const char *bundle, struct container *container);

/* Whether the container's programs are foreign, or at least are not known to be this machine's own. */
const char *is_foreign(const struct container *container);

/* Whether the container is for the store: it runs foreign programs, and nobody has switched it off. */
const char *is_to_be_accelerated(const struct container *container);

/* An O_PATH descriptor of the store, or -1 where there is none that can be used. */
int open_store(const char *path);

/* A detached copy of a mount, without those below it, or -1. */
int clone_mount(int directory);

/*
 * Tells the daemon of a root file system for which it may fill the store (io.maid.Store.Seen), if there is
 * a daemon that listens to us. Never waits for it.
 */
void tell_daemon(const char *socket_path, int root);

#endif
