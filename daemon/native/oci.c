// SPDX-License-Identifier: Apache-2.0
/*
 * Reading a bundle. The engine wrote config.json, but the root file system is anybody's: it is looked
 * into with openat2(RESOLVE_IN_ROOT), so that its links lead nowhere else, and nothing but a regular
 * file is opened.
 */
#define _GNU_SOURCE
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#include "oci.h"

#ifndef SYS_openat2
#define SYS_openat2 437
#endif
#ifndef SYS_open_tree
#define SYS_open_tree 428
#endif
#ifndef OPEN_TREE_CLONE
#define OPEN_TREE_CLONE 1
#define OPEN_TREE_CLOEXEC O_CLOEXEC
#endif

/* The programs that this machine's kernel runs by itself. */
#if defined(__x86_64__)
#define OWN_MACHINE(machine) ((machine) == EM_X86_64 || (machine) == EM_386)
#elif defined(__aarch64__)
#define OWN_MACHINE(machine) ((machine) == EM_AARCH64)
#else
#error "maid's native tools are for x86-64 and AArch64"
#endif

#define CONFIG_LIMIT (4 << 20)	/* those of Kubernetes, the largest, have some 100 KB */
#define SCRIPT_DEPTH 4		/* as many scripts that are another's interpreter as Linux allows */

enum program { UNKNOWN, OWN, FOREIGN };

long read_all(int file, char *text, size_t size)
{
	size_t used = 0;
	ssize_t more;

	do {
		more = read(file, text + used, size - used);
		if (more > 0)
			used += more;
	} while ((more > 0 && used < size) || (more < 0 && errno == EINTR));
	return more == 0 ? (long)used : -1;
}

const char *open_container(const char *bundle, struct container *container)
{
	static char text[CONFIG_LIMIT];
	char path[PATH_MAX];
	struct json root;
	int file;
	long length;

	container->bundle = open(bundle, O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (container->bundle < 0)
		return "the bundle cannot be opened";
	file = openat(container->bundle, CONFIG, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
	if (file < 0)
		return "config.json cannot be opened";
	length = read_all(file, text, sizeof(text));
	close(file);
	if (length < 0)
		return "config.json cannot be read or is too long";
	container->text = text;
	container->length = length;
	if (!json_read(text, length, &container->config))
		return "config.json is not JSON";
	if (!json_member(container->config, "root", &root) || !json_member(root, "path", &root) ||
	    !json_string(root, path, sizeof(path)))
		return "config.json names no root";
	container->root = openat(container->bundle, path, O_PATH | O_DIRECTORY | O_CLOEXEC);
	return container->root < 0 ? "the root directory cannot be opened" : NULL;
}

int open_store(const char *path)
{
	int store = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
	struct statvfs mount;
	struct stat ids;

	if (store < 0)
		return -1;
	/*
	 * A directory without build-ids is no store; one whose list is empty is being filled. Where nothing
	 * can be executed it is of no use, and in a user namespace a runtime that binds it without that flag
	 * would fail, as would the container.
	 */
	if (fstatat(store, "id", &ids, AT_SYMLINK_NOFOLLOW) == 0 && S_ISDIR(ids.st_mode) &&
	    fstatvfs(store, &mount) == 0 && !(mount.f_flag & ST_NOEXEC))
		return store;
	close(store);
	return -1;
}

/* A regular file in the root, opened for reading, or -1. Nothing else is: opening a device may do things. */
static int open_in_root(int root, const char *path)
{
	struct open_how how = { .flags = O_PATH | O_CLOEXEC, .resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS };
	int file = syscall(SYS_openat2, root, path, &how, sizeof(how));
	struct stat about;

	if (file < 0)
		return -1;
	if (fstat(file, &about) < 0 || !S_ISREG(about.st_mode)) {
		close(file);
		return -1;
	}
	close(file);
	how.flags = O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC;
	return syscall(SYS_openat2, root, path, &how, sizeof(how));
}

static enum program elf_program(const unsigned char *head)
{
	/* e_machine lies at the same place in both classes. */
	const unsigned char *machine = head + offsetof(Elf64_Ehdr, e_machine);

	if (head[EI_DATA] == ELFDATA2LSB)
		return OWN_MACHINE(machine[0] | machine[1] << 8) ? OWN : FOREIGN;
	return head[EI_DATA] == ELFDATA2MSB ? FOREIGN : UNKNOWN;
}

/* What would run if the container executed @path; a script's interpreter counts for it. */
static enum program program_at(int root, const char *path, int depth)
{
	unsigned char head[256 + 1] = { 0 };
	int file = depth ? open_in_root(root, path) : -1;
	char *interpreter;
	ssize_t length;

	if (file < 0)
		return UNKNOWN;
	length = read(file, head, sizeof(head) - 1);
	close(file);
	if (length >= (ssize_t)(offsetof(Elf64_Ehdr, e_version)) && !memcmp(head, ELFMAG, SELFMAG))
		return elf_program(head);
	if (length < 2 || memcmp(head, "#!", 2))
		return UNKNOWN;
	interpreter = (char *)head + 2;
	interpreter += strspn(interpreter, " \t");
	interpreter[strcspn(interpreter, " \t\n")] = 0;
	return program_at(root, interpreter, depth - 1);
}

/* The variable @name of the container's environment, or false. */
static bool variable(struct json process, const char *name, char *value, size_t size)
{
	struct json environment, each = { 0 };
	size_t length = strlen(name);

	if (!json_member(process, "env", &environment))
		return false;
	while (json_next(environment, &each)) {
		if (json_string(each, value, size) && !strncmp(value, name, length) && value[length] == '=') {
			memmove(value, value + length + 1, strlen(value + length + 1) + 1);
			return true;
		}
	}
	return false;
}

/* The container's first program, found as the runtime will find it. */
static enum program first_program(const struct container *container, struct json process)
{
	char name[PATH_MAX], directories[PATH_MAX], path[2 * PATH_MAX + 2], *directory, *rest = directories;
	enum program found;
	struct json arguments, first = { 0 };

	if (!json_member(process, "args", &arguments) || !json_next(arguments, &first) ||
	    !json_string(first, name, sizeof(name)))
		return UNKNOWN;
	if (*name == '/')
		return program_at(container->root, name, SCRIPT_DEPTH);
	if (strchr(name, '/')) {
		if (!json_member(process, "cwd", &first) ||
		    !json_string(first, directories, sizeof(directories)))
			return UNKNOWN;
		snprintf(path, sizeof(path), "%s/%s", directories, name);
		return program_at(container->root, path, SCRIPT_DEPTH);
	}
	if (!variable(process, "PATH", directories, sizeof(directories)))
		return UNKNOWN;
	while ((directory = strsep(&rest, ":"))) {
		snprintf(path, sizeof(path), "%s/%s", directory, name);
		found = program_at(container->root, path, SCRIPT_DEPTH);
		if (found != UNKNOWN)
			return found;
	}
	return UNKNOWN;
}

const char *is_foreign(const struct container *container)
{
	struct json process;
	enum program first, shell;

	if (!json_member(container->config, "process", &process))
		return "config.json names no process";
	/*
	 * The shell as well: with `docker run --init` the first program is one of the machine's own. Where
	 * neither says anything they are taken for foreign: what is mounted does no harm unused.
	 */
	first = first_program(container, process);
	if (first == FOREIGN)
		return NULL;
	shell = program_at(container->root, "/bin/sh", SCRIPT_DEPTH);
	if (shell != FOREIGN && (first == OWN || shell == OWN))
		return "its programs are this machine's own";
	return NULL;
}

const char *is_to_be_accelerated(const struct container *container)
{
	struct json process;
	char value[PATH_MAX];

	if (json_member(container->config, "process", &process) &&
	    variable(process, "MAID_ACCELERATE", value, sizeof(value)) &&
	    (!strcmp(value, "0") || !strcmp(value, "off") || !strcmp(value, "no")))
		return "MAID_ACCELERATE switches it off";
	return is_foreign(container);
}

int clone_mount(int directory)
{
	return syscall(SYS_open_tree, directory, "", OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_EMPTY_PATH);
}

void tell_daemon(const char *socket_path, int root)
{
	/* varlink (varlink.org/Interface-Definition): a JSON object and a 0 byte; the descriptor by index. */
	static char call[] =
		"{\"method\":\"io.maid.Store.Seen\",\"parameters\":{\"rootfs\":0},\"oneway\":true}";
	char control[CMSG_SPACE(sizeof(int))] __attribute__((aligned(8))) = { 0 };
	struct iovec data = { .iov_base = call, .iov_len = sizeof(call) };
	struct msghdr message = { .msg_iov = &data, .msg_iovlen = 1, .msg_control = control,
				  .msg_controllen = sizeof(control) };
	struct cmsghdr *header = CMSG_FIRSTHDR(&message);
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	int daemon, copy;

	if (strlen(socket_path) >= sizeof(address.sun_path))
		return;
	strcpy(address.sun_path, socket_path);
	daemon = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (daemon < 0)
		return;
	/* A copy of the mount: the daemon's descriptor of it must not keep the engine from unmounting. */
	if (connect(daemon, (struct sockaddr *)&address, sizeof(address)) == 0 &&
	    (copy = clone_mount(root)) >= 0) {
		header->cmsg_level = SOL_SOCKET;
		header->cmsg_type = SCM_RIGHTS;
		header->cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(header), &copy, sizeof(int));
		(void)!sendmsg(daemon, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
		close(copy);
	}
	close(daemon);
}
