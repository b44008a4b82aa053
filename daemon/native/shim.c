// SPDX-License-Identifier: Apache-2.0
/*
 * shim.c - libmaid-shim.so: what a native tool must answer as the foreign one
 *
 * Loaded before everything else by the loader of the native store's tools that
 * need it (maid/acceleration/respell.py says which), through what stands in the
 * place of /etc/ld.so.preload in that loader: nothing is in the environment. It
 * answers in the name of the program it stands in for:
 *
 *	uname		the foreign machine's name
 *	readlink	of /proc/self/exe and /proc/<own pid>/exe: the foreign path
 *	dlopen		of a foreign module: its native twin, which the store keeps
 *			like a program, under the module's build-id
 *
 * and what only some programs call: shim_numbers.c, shim_flags.c, shim_llvm.c.
 *
 * It can hand the process back to QEMU, as long as nothing has come of it yet:
 * before main() when a directory of modules ("modules=" setting) holds one
 * without a twin, and later when the program loads such a module from elsewhere,
 * has written nothing, changed nothing, read nothing from a pipe, started no
 * process and stands where it was started. The path below /dev/.maid/emulate/ (a link to /) tells the front to stand aside.
 *
 * The settings stand in the program itself, in a segment that begins with MAGIC:
 * strings KEY=VALUE, each ended by a zero byte, the last one empty.
 *
 * Built against nothing but the C library's basic symbols, so that it loads with
 * any glibc of the releases that are served, whatever this one was built on.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <link.h>
#include <stddef.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <unistd.h>

#include "shim.h"

static const char MAGIC[16] = "maid\177shim\1771";
static const char STORE[] = "/dev/.maid/id/";
static const char EMULATE[] = "/dev/.maid/emulate";

#define RECORD_SIZE	4096
#define HEADER_SIZE	4096
#define MAX_ID		64
#define MAX_DEPTH	8
#define MAX_TEXT	(128 * 1024)
#define MAX_POINTERS	4096

static const char *settings;

/* What the process was started with, for a second start. */
static struct {
	char **argv, **envp;	/* NULL: it did not fit */
	off_t input;
	long writes;
	struct stat directory;
	char *pointers[MAX_POINTERS];
	char text[MAX_TEXT];
} first;

const char *setting(const char *key)
{
	size_t length = strlen(key);

	for (const char *s = settings; s && *s; s += strlen(s) + 1)
		if (!strncmp(s, key, length) && s[length] == '=')
			return s + length + 1;
	return NULL;
}

/* The program's own segment with the settings, by its program headers. */
static void find_settings(void)
{
	const ElfW(Phdr) *header = (void *)getauxval(AT_PHDR);
	size_t count = getauxval(AT_PHNUM);
	ElfW(Addr) base = 0;

	for (size_t i = 0; header && i < count; i++)
		if (header[i].p_type == PT_PHDR)
			base = (ElfW(Addr))header - header[i].p_vaddr;
	for (size_t i = 0; header && i < count; i++) {
		const char *start = (const char *)(base + header[i].p_vaddr);

		if (header[i].p_type == PT_LOAD && header[i].p_flags == PF_R &&
		    header[i].p_filesz > sizeof MAGIC && !memcmp(start, MAGIC, sizeof MAGIC))
			settings = start + sizeof MAGIC;
	}
}

/*
 * The GNU build-id of an ELF file of either width and byte order that this
 * machine shares, in hexadecimal; 0 when there is none within its first page.
 */
static size_t build_id(const unsigned char *b, size_t size, char *id)
{
	static const char digits[] = "0123456789abcdef";
	const Elf64_Ehdr *header = (const void *)b;

	if (size < sizeof *header || memcmp(b, ELFMAG, SELFMAG) ||
	    b[EI_CLASS] != ELFCLASS64 || b[EI_DATA] != ELFDATA2LSB ||
	    header->e_phentsize != sizeof(Elf64_Phdr) || header->e_phoff > size ||
	    header->e_phnum > (size - header->e_phoff) / sizeof(Elf64_Phdr))
		return 0;
	const Elf64_Phdr *segment = (const void *)(b + header->e_phoff);
	for (int i = 0; i < header->e_phnum; i++) {
		size_t at = segment[i].p_offset, end = at + segment[i].p_filesz;

		if (segment[i].p_type != PT_NOTE || end < at || end > size)
			continue;
		while (end - at >= sizeof(Elf64_Nhdr)) {
			const Elf64_Nhdr *note = (const void *)(b + at);
			size_t name = (note->n_namesz + 3ul) & ~3ul;
			size_t data = (note->n_descsz + 3ul) & ~3ul;

			at += sizeof *note;
			if (name > end - at || data > end - at - name)
				break;
			if (note->n_type == NT_GNU_BUILD_ID && note->n_namesz == 4 &&
			    !memcmp(b + at, "GNU", 4) && note->n_descsz <= MAX_ID) {
				for (size_t k = 0; k < note->n_descsz; k++) {
					*id++ = digits[b[at + name + k] >> 4];
					*id++ = digits[b[at + name + k] & 15];
				}
				*id = 0;
				return 2 * note->n_descsz;
			}
			at += name + data;
		}
	}
	return 0;
}

static ssize_t contents(int directory, const char *path, void *buffer, size_t size)
{
	int fd = syscall(SYS_openat, directory, path, O_RDONLY | O_CLOEXEC | O_NOCTTY, 0);
	ssize_t n;

	if (fd < 0)
		return -1;
	n = syscall(SYS_pread64, fd, buffer, size, 0);
	syscall(SYS_close, fd);
	return n;
}

/* Whether this machine's loader can load the module itself. */
static int is_native(const unsigned char *b)
{
	const ElfW(Ehdr) *own = (void *)((ElfW(Addr))getauxval(AT_PHDR) & -4096ul);

	return ((const ElfW(Ehdr) *)b)->e_machine == own->e_machine;
}

/*
 * The twin of a module, from the record that the store keeps under its build-id
 * (records.py): the last string, after "=". 0 when the file is no foreign ELF
 * file, 1 when its twin was found, -1 when it has none.
 */
static int twin_of(int directory, const char *path, char *twin)
{
	unsigned char b[HEADER_SIZE];
	char record[RECORD_SIZE], name[sizeof STORE + 2 * MAX_ID];
	ssize_t n = contents(directory, path, b, sizeof b);

	if (n < (ssize_t)sizeof(Elf64_Ehdr) || memcmp(b, ELFMAG, SELFMAG) || is_native(b))
		return 0;
	memcpy(name, STORE, sizeof STORE);
	if (!build_id(b, n, name + sizeof STORE - 1))
		return -1;
	n = contents(AT_FDCWD, name, record, sizeof record);
	if (n < 2 || record[n - 1])
		return -1;
	const char *last = memrchr(record, 0, n - 1);
	last = last ? last + 1 : record;
	if (*last != '=' || strlen(last) > PATH_MAX - 1)
		return -1;
	strcpy(twin, last + 1);
	return 1;
}

/* Whether every module below a directory has its twin; one that is not there has. */
static int complete(int above, const char *path, int depth)
{
	int fd = syscall(SYS_openat, above, path, O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0);
	char twin[PATH_MAX], buffer[8192];
	int all = 1;
	long n;

	if (fd < 0)
		return errno == ENOENT;
	while (all && (n = syscall(SYS_getdents64, fd, buffer, sizeof buffer)) > 0) {
		for (long at = 0; all && at < n;) {
			struct dirent64 *entry = (void *)(buffer + at);
			size_t length = strlen(entry->d_name);

			at += entry->d_reclen;
			if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, ".."))
				continue;
			if (length > 3 && !strcmp(entry->d_name + length - 3, ".so"))
				all = twin_of(fd, entry->d_name, twin) == 1;
			else if (entry->d_type == DT_DIR)
				all = depth < MAX_DEPTH && complete(fd, entry->d_name, depth + 1);
			else if (entry->d_type != DT_REG)
				all = 0;	/* a link to somewhere: not looked at, not trusted */
		}
	}
	syscall(SYS_close, fd);
	return all && n >= 0;
}

/* How often this process has written: not none, where the front keeps a log. -1: unknown. */
static long writes_so_far(void)
{
	static const char WRITES[] = "syscw: ";
	char text[512];
	ssize_t n = contents(AT_FDCWD, "/proc/self/io", text, sizeof text - 1);
	long writes = 0;

	if (n <= 0)
		return -1;
	text[n] = 0;
	const char *at = strstr(text, WRITES);
	if (!at)
		return -1;
	for (at += sizeof WRITES - 1; *at >= '0' && *at <= '9'; at++)
		writes = writes * 10 + *at - '0';
	return writes;
}

static void remember(char **argv, char **envp)
{
	size_t used = 0, count = 0;
	char **vectors[] = { argv, envp }, **starts[2];

	for (int v = 0; v < 2; v++) {
		starts[v] = first.pointers + count;
		for (char **from = vectors[v]; *from; from++) {
			size_t size = strlen(*from) + 1;

			if (size > sizeof first.text - used || count + 2 > MAX_POINTERS)
				return;
			memcpy(first.text + used, *from, size);
			first.pointers[count++] = first.text + used;
			used += size;
		}
		first.pointers[count++] = NULL;
	}
	first.input = syscall(SYS_lseek, 0, 0, SEEK_CUR);
	first.writes = writes_so_far();
	if (syscall(SYS_newfstatat, AT_FDCWD, ".", &first.directory, 0))
		return;
	first.argv = starts[0];
	first.envp = starts[1];
}

/* Whether nothing has come of this process so far that a second start would repeat. */
static int untouched(void)
{
	struct stat directory;
	struct rusage children;
	siginfo_t child;

	if (!first.argv || has_effects)
		return 0;
	if (first.writes < 0 || writes_so_far() != first.writes)
		return 0;
	if (syscall(SYS_waitid, P_ALL, 0, &child, WEXITED | WNOHANG | WNOWAIT, NULL) != -1)
		return 0;
	if (syscall(SYS_getrusage, RUSAGE_CHILDREN, &children) || children.ru_minflt)
		return 0;
	if (syscall(SYS_newfstatat, AT_FDCWD, ".", &directory, 0) ||
	    directory.st_dev != first.directory.st_dev ||
	    directory.st_ino != first.directory.st_ino)
		return 0;
	return first.input < 0 || syscall(SYS_lseek, 0, first.input, SEEK_SET) == first.input;
}

/* Starts the foreign program under QEMU in this process; returns if that fails. */
static void hand_back(char **argv, char **envp)
{
	char path[PATH_MAX + sizeof EMULATE];
	const char *exe = setting("exe");

	if (!exe || strlen(exe) >= PATH_MAX)
		return;
	strcpy(path, EMULATE);
	strcat(path, exe);
	syscall(SYS_execve, path, argv, envp);
}

__attribute__((constructor)) static void begin(int argc, char **argv, char **envp)
{
	const char *modules;

	(void)argc;
	find_settings();
	prepare_division();
	modules = setting("modules");
	while (modules && *modules) {
		size_t length = strcspn(modules, ":");
		char path[PATH_MAX];

		if (length >= sizeof path)
			return;
		memcpy(path, modules, length);
		path[length] = 0;
		if (!complete(AT_FDCWD, path, 0))
			hand_back(argv, envp);
		modules += length + (modules[length] == ':');
	}
	if (modules || setting("triple"))
		remember(argv, envp);
}

void give_up(void)
{
	if (untouched())
		hand_back(first.argv, first.envp);
}

EXPORT int uname(struct utsname *name)
{
	const char *machine = setting("machine");
	int result = syscall(SYS_uname, name);

	if (!result && machine && strlen(machine) < sizeof name->machine) {
		memset(name->machine, 0, sizeof name->machine);
		strcpy(name->machine, machine);
	}
	return result;
}

static int is_own_exe(const char *path)
{
	long pid = 0;

	if (strncmp(path, "/proc/", 6))
		return 0;
	path += 6;
	if (!strncmp(path, "self/", 5))
		return !strcmp(path + 5, "exe");
	while (*path >= '0' && *path <= '9')
		pid = pid * 10 + *path++ - '0';
	return !strcmp(path, "/exe") && pid == syscall(SYS_getpid);
}

EXPORT ssize_t readlinkat(int directory, const char *path, char *buffer, size_t size)
{
	const char *exe = setting("exe");

	if (exe && is_own_exe(path) && (ssize_t)size > 0) {
		size_t length = strlen(exe);

		length = length < size ? length : size;
		memcpy(buffer, exe, length);
		return length;
	}
	return syscall(SYS_readlinkat, directory, path, buffer, size);
}

EXPORT ssize_t readlink(const char *path, char *buffer, size_t size)
{
	return readlinkat(AT_FDCWD, path, buffer, size);
}

EXPORT ssize_t __readlink_chk(const char *path, char *buffer, size_t size, size_t room)
{
	if (size > room)
		__builtin_trap();
	return readlink(path, buffer, size);
}

EXPORT void *dlopen(const char *path, int flags)
{
	static void *(*next)(const char *, int);
	char twin[PATH_MAX];

	if (!next)
		next = dlsym(RTLD_NEXT, "dlopen");
	if (path && strchr(path, '/')) {
		int found = twin_of(AT_FDCWD, path, twin);

		if (found == 1)
			path = twin;
		else if (found < 0)
			give_up();
	}
	return next(path, flags);
}
