// SPDX-License-Identifier: Apache-2.0
/*
 * front_native.c - the native program that stands in for the foreign one
 *
 * Where the store is mounted, the record id/<build-id> in it says which native
 * program writes the same as the foreign program with that build-id. If it
 * exists and its rules hold, the native program is executed in QEMU's place,
 * with the caller's argv and environment. If not, or if that fails, QEMU starts
 * as if there was no store: every change made for the execution is undone.
 *
 * What comes first costs least. Without a store, which is the case in most
 * places, a start costs one system call that fails. The store is told from a
 * directory of that name in an image by the device and inode of its root, which
 * bake.py put into the front. The records are root's and describe programs as
 * distributions made them; what a process may then execute, the kernel decides
 * as for every other program.
 *
 * A process whose privileges differ from its caller's (AT_SECURE, or the ids
 * say so) never gets here: the native program is not setuid, and nothing of
 * what the caller controls may decide anything in it.
 */
#include "front_calls.h"

#define IDS	STORE "/id/"
/* Libraries that the foreign loader loads into every program of the root file system. */
#define PRELOAD	"/etc/ld.so.preload"
/*
 * A link to / in the store: a native program hands its process back by executing
 * the foreign one by a path below it (shim.c).
 */
#define EMULATE	STORE "/emulate/"

#define LOG_SIZE	24
/* How far below RLIMIT_FSIZE the log must be: what others may append meanwhile. */
#define LOG_MARGIN	(1 << 20)

/*
 * Appends a record to the log: @what, the build-id's length and the build-id, cut
 * and filled with zeros. 'n': the native program is about to be executed; 'f':
 * that failed, or it handed its process back; 'e': QEMU runs the program. A write
 * at the process's own limit for files would kill it (SIGXFSZ), so then there is
 * none.
 */
static void log_start(char what, const struct build_id *id)
{
	unsigned char record[LOG_SIZE];
	struct status status;
	struct limit limit;
	size_t size = id->size < LOG_SIZE - 2 ? id->size : LOG_SIZE - 2;
	int file;

	for (size_t i = 0; i < LOG_SIZE; i++)
		record[i] = i >= 2 && i - 2 < size ? id->bytes[i - 2] : 0;
	record[0] = (unsigned char)what;
	record[1] = (unsigned char)size;
	file = open_regular(LOG, O_WRONLY | O_APPEND | O_NOFOLLOW, &status);
	if (file < 0)
		return;
	if (call(NR_prlimit64, 0, RLIMIT_FSIZE, 0, (word)&limit) == 0 &&
	    (limit.soft == RLIM_INFINITY ||
	     (limit.soft >= LOG_MARGIN &&
	      (uint64_t)status.size <= limit.soft - LOG_MARGIN)))
		call(NR_write, (word)file, (word)record, LOG_SIZE, 0);
	call_close(file);
}

/* Whether there is a log: looked at and not opened, for what else could be there. */
static int has_log(void)
{
	struct status status;

	return call_stat(LOG, AT_SYMLINK_NOFOLLOW, &status) &&
	       (status.mode & S_IFMT) == S_IFREG;
}

static int has_preload(void)
{
	struct status status;

	return call_stat(PRELOAD, 0, &status);
}

static int is_store(const struct store *store)
{
	struct status status;

	return call_stat(STORE, AT_SYMLINK_NOFOLLOW, &status) &&
	       (status.mode & S_IFMT) == S_IFDIR && status.device == store->device &&
	       status.inode == store->inode;
}

/* Reads the record for @id into @record, RECORD_SIZE bytes; returns its size, or 0. */
static size_t read_record(const struct build_id *id, const struct store *store, char *record)
{
	char path[sizeof(IDS) + 2 * ID_SIZE];
	struct status status;
	size_t n = 0;
	long got = 0;
	int file;

	for (const char *c = IDS; *c; c++)
		path[n++] = *c;
	build_id_text(id, path + n);
	file = open_regular(path, O_RDONLY | O_NOFOLLOW, &status);
	if (file < 0)
		return 0;
	if (status.device == store->device && status.size > 0 && status.size <= RECORD_SIZE)
		got = call_pread(file, record, RECORD_SIZE, 0);
	call_close(file);
	return got > 0 && got == status.size ? (size_t)got : 0;
}

/* Executes the native program; returns only if that failed, with all as it was. */
static void execute(const struct process *process, int file, const struct stand_in *wanted)
{
	char **argv = process->argv + 2, *original[MAX_REPLACED];
	char *path = process->argv[1], *name = process->argv[2];

	for (size_t i = 0; i < wanted->replaced; i++) {
		original[i] = *wanted->replacement[i].slot;
		*wanted->replacement[i].slot = (char *)wanted->replacement[i].text;
	}
	/* The foreign program's path has become superfluous: there is room for one more. */
	if (wanted->inserted) {
		argv[0] = (char *)wanted->inserted;
		*--argv = name;
	}
	/* The kernel gave the foreign program to QEMU open, not to the native program. */
	if (file < 0 || call(NR_fcntl, (word)file, F_SETFD, FD_CLOEXEC, 0) == 0)
		call(NR_execve, (word)wanted->program, (word)argv, (word)process->envp, 0);
	if (file >= 0)
		call(NR_fcntl, (word)file, F_SETFD, 0, 0);
	process->argv[1] = path;
	process->argv[2] = name;
	for (size_t i = wanted->replaced; i--;)
		*wanted->replacement[i].slot = original[i];
}

void native(const struct process *process, const struct store *store)
{
	const word *auxv = process->auxv;
	/* -1: the kernel passed none (no flag O). */
	int file = (int)auxiliary(auxv, AT_EXECFD, (word)-1);
	unsigned char window[WINDOW_SIZE];
	char record[RECORD_SIZE];
	struct stand_in wanted;
	struct build_id id;
	int allowed, returned, logged;
	size_t size;

	/* With flag P: the interpreter, the program's path, the caller's argv. */
	if (process->argc < 3 || !(auxiliary(auxv, AT_FLAGS, 0) & AT_FLAGS_PRESERVE_ARGV0))
		return;
	if (auxiliary(auxv, AT_SECURE, 1) ||
	    auxiliary(auxv, AT_UID, 0) != auxiliary(auxv, AT_EUID, 1) ||
	    auxiliary(auxv, AT_GID, 0) != auxiliary(auxv, AT_EGID, 1))
		return;
	if (!is_store(store))
		return;
	returned = starts(process->argv[1], EMULATE);
	allowed = !returned && environment_allows(process->envp);
	logged = has_log();
	if (!allowed && !logged)
		return;
	if (file >= 0)
		build_id_of_file(file, window, &id);
	else
		build_id_of_path(process->argv[1], window, &id);
	size = allowed && id.size ? read_record(&id, store, record) : 0;
	if (size &&
	    rules_allow(record, size, process, file, window, &wanted) &&
	    !has_preload()) {
		if (logged)
			log_start('n', &id);
		execute(process, file, &wanted);
		if (logged)
			log_start('f', &id);
	} else if (logged) {
		log_start(returned ? 'f' : 'e', &id);
	}
}
