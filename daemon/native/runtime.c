// SPDX-License-Identifier: Apache-2.0
/*
 * maid-runtime: stands before runc or crun and has the native store mounted in the containers that they
 * create, for podman and buildah (containers.conf, engine.runtimes), Docker's BuildKit
 * (DOCKER_BUILDKIT_RUNC_COMMAND), buildkitd ([worker.oci] binary), containerd (BinaryName) and docker run
 * (daemon.json, runtimes).
 *
 *   maid-runtime ARGUMENT...	as runc and crun take them
 *
 * Of `create` and `run` it completes the bundle's config.json by one mount, every other byte as it was;
 * the runtime then makes the mount point in the container's own /dev, so that no image has a trace of it.
 * Where anything is not as expected the bundle is left alone. Then, and for all other commands at once, it
 * executes the runtime: MAID_RUNTIME, or else crun where it is called by a link of that name, or else runc,
 * or else crun, in PATH and the usual directories.
 *
 * In the engine's environment MAID_STORE and MAID_SOCKET name another store ("" is none) and another
 * daemon, and MAID_VERBOSE asks for a line on standard error that says what was done. MAID_INIT is the path
 * of maid-init, which then is mounted as well and starts the command: as the first process of its pid
 * namespace a foreign program that crashes would never end (init.c).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "oci.h"

extern char **environ;

/* The command line ---------------------------------------------------------------------------- */

/* Options of runc 1.1 and crun 1.x whose value may be the next argument; the others stand alone. */
static const char *const with_value[] = {
	"root", "log", "log-format", "log-level", "criu", "rootless", "cgroup-manager",	/* before the command */
	"console-socket", "pid-file", "preserve-fds", "process", "bundle", "b", "config", "f", NULL
};

/* Whether @option is "name" or "name=value". */
static bool is_option(const char *option, const char *name)
{
	size_t length = strlen(name);

	return !strncmp(option, name, length) && (!option[length] || option[length] == '=');
}

static bool takes_next(const char *option)
{
	int i;

	for (i = 0; with_value[i]; i++)
		if (!strcmp(option, with_value[i]))
			return true;
	return false;
}

/* The bundle of a command line that creates a container, or NULL where it does not. */
static const char *bundle_of(char **argv)
{
	const char *bundle = ".", *option, *value;
	bool is_command_seen = false;

	for (argv++; *argv; argv++) {
		option = *argv;
		if (*option != '-' || !option[1]) {
			if (is_command_seen)
				break;	/* the container's name */
			if (strcmp(option, "create") && strcmp(option, "run"))
				return NULL;
			is_command_seen = true;
			continue;
		}
		option += option[1] == '-' ? 2 : 1;	/* Go programs take -bundle as well */
		if (!*option)
			break;
		value = strchr(option, '=');
		if (value)
			value++;
		else if (takes_next(option) && !(value = *++argv))
			return NULL;
		if (!is_command_seen)
			continue;
		if (is_option(option, "bundle") || is_option(option, "b"))
			bundle = value;
		else if (is_option(option, "config") || is_option(option, "f"))
			return NULL;	/* crun: the configuration is another file */
	}
	return is_command_seen ? bundle : NULL;
}

/* The bundle ---------------------------------------------------------------------------------- */

/* Whether the mount's destination is @path; the engines write it clean or with a slash at its end. */
static bool is_at(struct json mount, const char *path)
{
	struct json destination;
	char text[PATH_MAX];
	size_t length = strlen(path);

	if (!json_member(mount, "destination", &destination) || !json_string(destination, text, sizeof(text)))
		return false;
	return !strncmp(text, path, length) && text[length + strspn(text + length, "/")] == 0;
}

/*
 * Whether the container gets a /dev of its own, in which the mount point @point leaves no trace: of several
 * mounts there the last one counts.
 */
static const char *has_room(struct json mounts, const char *point)
{
	struct json mount = { 0 }, type;
	char text[16];
	bool has_devices = false;

	while (json_next(mounts, &mount)) {
		if (is_at(mount, point))
			return "something is mounted there already";
		if (is_at(mount, "/dev"))
			has_devices = json_member(mount, "type", &type) && json_string(type, text, sizeof(text)) &&
				      !strcmp(text, "tmpfs");
	}
	return has_devices ? NULL : "/dev is not a file system of the container's own";
}

static bool write_all(int file, const char *text, size_t length)
{
	while (length) {
		ssize_t done = write(file, text, length);

		if (done < 0 && errno != EINTR)
			return false;
		if (done > 0) {
			text += done;
			length -= done;
		}
	}
	return true;
}

/* A text that config.json gets more, before what is at @at. */
struct addition {
	const char *at, *text;
};

/* A new config.json in the place of the old one, at once; the additions are in the order of their places. */
static const char *replace_config(const struct container *container, const struct addition *added, int count)
{
	const char *at = container->text, *end = at + container->length;
	int bundle = container->bundle, file, i;
	struct stat old;
	char name[64];
	bool is_written;

	if (fstatat(bundle, CONFIG, &old, AT_SYMLINK_NOFOLLOW) < 0)
		return "config.json is gone";
	snprintf(name, sizeof(name), "." CONFIG ".maid-%d", getpid());
	file = openat(bundle, name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
	if (file < 0)
		return "nothing can be written in the bundle";
	is_written = true;
	for (i = 0; is_written && i < count; at = added[i++].at)
		is_written = write_all(file, at, added[i].at - at) &&
			     write_all(file, added[i].text, strlen(added[i].text));
	is_written = is_written && write_all(file, at, end - at) &&
		     fchown(file, old.st_uid, old.st_gid) == 0 && fchmod(file, old.st_mode & 07777) == 0;
	if (close(file) < 0)
		is_written = false;
	if (is_written && renameat(bundle, name, bundle, CONFIG) == 0)
		return NULL;
	unlinkat(bundle, name, 0);
	return "config.json cannot be replaced";
}

#define MOUNT_SIZE (PATH_MAX + 256)

/*
 * The end of the list of mounts, and in @text (MOUNT_SIZE) what is to be written there for @source to be
 * mounted at @point.
 */
static const char *plan_mount(const struct container *container, const char *source, const char *point,
			      char *text, const char **at)
{
	struct json mounts;
	const char *why_not, *each;

	for (each = source; *each; each++)
		if ((unsigned char)*each < 0x20 || *each == '"' || *each == '\\')
			return "its path would have to be quoted";
	if (!json_member(container->config, "mounts", &mounts))
		return "config.json lists no mounts";
	why_not = has_room(mounts, point);
	if (why_not)
		return why_not;
	snprintf(text, MOUNT_SIZE,
		 ",{\"destination\":\"%s\",\"type\":\"bind\",\"source\":\"%s\","
		 "\"options\":[\"bind\",\"ro\",\"nosuid\",\"nodev\"]}", point, source);
	*at = mounts.end - 1;
	return NULL;
}

static const char *add_store(const struct container *container, const char *store)
{
	char mount[MOUNT_SIZE];
	struct addition added = { .text = mount };
	const char *why_not = plan_mount(container, store, "/dev/" STORE_MOUNT, mount, &added.at);

	return why_not ? why_not : replace_config(container, &added, 1);
}

/* maid-init is mounted, and stands before the command. */
static const char *add_init(const struct container *container, const char *init)
{
	char mount[MOUNT_SIZE];
	struct addition word = { .text = "\"/dev/" INIT_MOUNT "\"," }, other = { .text = mount };
	struct json process, arguments, first = { 0 };
	const char *why_not = plan_mount(container, init, "/dev/" INIT_MOUNT, mount, &other.at);

	if (why_not)
		return why_not;
	if (!json_member(container->config, "process", &process) ||
	    !json_member(process, "args", &arguments) || !json_next(arguments, &first))
		return "config.json names no program";
	word.at = first.text;
	if (word.at < other.at)
		return replace_config(container, (struct addition[]){ word, other }, 2);
	return replace_config(container, (struct addition[]){ other, word }, 2);
}

static const char *accelerate(const char *bundle)
{
	const char *store = getenv("MAID_STORE"), *socket_path = getenv("MAID_SOCKET"), *why_not;
	struct container container;
	int directory;

	if (!store)
		store = STORE;
	directory = *store == '/' && strlen(store) < PATH_MAX ? open_store(store) : -1;
	if (directory < 0)
		return "there is no store";
	close(directory);
	why_not = open_container(bundle, &container);
	if (!why_not)
		why_not = is_to_be_accelerated(&container);
	if (!why_not)
		why_not = add_store(&container, store);
	if (!why_not)
		tell_daemon(socket_path && *socket_path ? socket_path : SOCKET, container.root);
	return why_not;
}

/* Has the command started by @init. Apart from the store: neither depends on the other. */
static const char *start_by_init(const char *bundle, const char *init)
{
	struct container container;
	struct stat about;
	const char *why_not;

	/* Where it cannot be executed the container would fail; access(2) looks at noexec as well. */
	if (*init != '/' || strlen(init) >= PATH_MAX || stat(init, &about) < 0 || !S_ISREG(about.st_mode) ||
	    access(init, X_OK) < 0)
		return "it is no program";
	why_not = open_container(bundle, &container);
	if (!why_not)
		why_not = is_foreign(&container);
	return why_not ? why_not : add_init(&container, init);
}

static void complete(const char *bundle)
{
	const char *init = getenv("MAID_INIT"), *why_not = accelerate(bundle);
	bool is_verbose = getenv("MAID_VERBOSE");

	if (is_verbose)
		dprintf(STDERR_FILENO, "maid-runtime: %s\n", why_not ? why_not : "mounted");
	if (!init || !*init)
		return;
	why_not = start_by_init(bundle, init);
	if (is_verbose)
		dprintf(STDERR_FILENO, "maid-runtime: MAID_INIT: %s\n", why_not ? why_not : "starts the command");
}

/* The runtime --------------------------------------------------------------------------------- */

static bool has_same_content(const char *one, const char *other)
{
	char text[2][4096];
	FILE *file[2] = { fopen(one, "re"), fopen(other, "re") };
	bool is_same = file[0] && file[1];
	size_t length;

	while (is_same) {
		length = fread(text[0], 1, sizeof(text[0]), file[0]);
		is_same = fread(text[1], 1, sizeof(text[1]), file[1]) == length &&
			  !memcmp(text[0], text[1], length);
		if (length < sizeof(text[0]))
			break;
	}
	if (file[0])
		fclose(file[0]);
	if (file[1])
		fclose(file[1]);
	return is_same;
}

/* Whether @path is this program or a copy of it, which would only look for the runtime again. */
static bool is_self(const char *path)
{
	static const char self[] = "/proc/self/exe";
	struct stat own, other;

	if (stat(self, &own) < 0 || stat(path, &other) < 0)
		return false;
	if (own.st_dev == other.st_dev && own.st_ino == other.st_ino)
		return true;
	return own.st_size == other.st_size && has_same_content(self, path);
}

/* Executes the program @name of the @directories with our arguments; returns where it is not there. */
static void execute_in(const char *directories, const char *name, char **argv)
{
	char path[PATH_MAX];
	const char *end;

	do {
		end = strchrnul(directories, ':');
		if (snprintf(path, sizeof(path), "%.*s%s%s", (int)(end - directories), directories,
			     end > directories ? "/" : "", name) < (int)sizeof(path) &&
		    access(path, X_OK) == 0 && !is_self(path)) {
			argv[0] = path;
			execve(path, argv, environ);
		}
		directories = end + 1;
	} while (*end);
}

static void execute(const char *name, char **argv)
{
	const char *directories = getenv("PATH");

	if (strchr(name, '/')) {
		execute_in("", name, argv);
		return;
	}
	if (directories && *directories)
		execute_in(directories, name, argv);
	/* An ordinary user's PATH lacks the directory in which Debian has runc. */
	execute_in("/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", name, argv);
}

int main(int argc, char **argv)
{
	const char *bundle, *called, *chosen = getenv("MAID_RUNTIME");

	if (argc < 1)
		return 127;
	called = strrchr(argv[0], '/');
	called = called ? called + 1 : argv[0];
	bundle = bundle_of(argv);
	if (bundle)
		complete(bundle);
	if (chosen && *chosen) {
		execute(chosen, argv);
		dprintf(STDERR_FILENO, "maid-runtime: MAID_RUNTIME=%s cannot be executed: %s\n", chosen,
			strerror(errno));
		return 127;
	}
	if (!strcmp(called, "crun"))
		execute("crun", argv);
	execute("runc", argv);
	execute("crun", argv);
	dprintf(STDERR_FILENO, "maid-runtime: there is no runc and no crun in PATH; MAID_RUNTIME may name one\n");
	return 127;
}
