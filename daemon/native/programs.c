/*
 * The log of a step's programs: a small file system with one file, to which the front adds a record for
 * every program that is started in the step (front.c), and what is made of it at the end.
 *
 * The step can write anything into that file, and as much as fits: it is a tmpfs of its own, bounded,
 * and what is read back is bounded too. Records are 24 bytes: what happened, 'n' (a native tool is about
 * to be executed), 'f' (that failed) or 'e' (QEMU runs the program), the length of the build-id, at most
 * 22, and the build-id.
 *
 * DIRECTORY/programs.txt then has a line "KIND BUILD-ID COUNT" for each kind and build-id, '-' for one
 * that is empty; the programs that QEMU ran are one line together. "full" on a line of its own: the
 * file was full, and the counts are too low.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <stdlib.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include "step.h"

#define RECORD 24
#define BUILD_ID 22
#define ROOM (4 << 20)	/* bytes: 174,762 programs */
#define MAX_LINES 1000	/* tools that are told apart; there are some hundred */

static int program_log = -1;
static unsigned char records[ROOM];

void make_program_log(void)
{
	const char *place = below("programs");
	char options[64];
	int file;

	if (mkdir(place, 0755) < 0 && errno != EEXIST)
		fail(place);
	snprintf(options, sizeof(options), "size=%d,nr_inodes=2,mode=0755", ROOM);
	if (mount("tmpfs", place, "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, options) < 0)
		fail("mounting the log of programs");
	/* Whoever a program in the step runs as: it may write to it. */
	file = open(below("programs/log"), O_RDONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
	if (file < 0 || fchmod(file, 0666) < 0)
		fail("the log of programs");
	/* Not among the first: those have a meaning for what is started. */
	program_log = fcntl(file, F_DUPFD_CLOEXEC, 10);
	if (program_log < 0)
		fail("the log of programs");
	close(file);
}

static int by_content(const void *a, const void *b)
{
	return memcmp(a, b, RECORD);
}

/* Makes a record one that is well-formed, so that equal ones are equal in every byte; 0: it is none. */
static int normalise(unsigned char *record)
{
	if (!record[0] || !strchr("nfe", record[0]) || record[1] > BUILD_ID)
		return 0;
	if (record[0] == 'e')	/* which ones it ran is for a profile to say */
		record[1] = 0;
	memset(record + 2 + record[1], 0, BUILD_ID - record[1]);
	return 1;
}

static void write_line(FILE *to, const unsigned char *record, size_t count)
{
	int i;

	fprintf(to, "%c ", record[0]);
	for (i = 0; i < record[1]; i++)
		fprintf(to, "%02x", record[2 + i]);
	fprintf(to, "%s %zu\n", record[1] ? "" : "-", count);
}

void tally_programs(void)
{
	size_t length = 0, kept = 0, i, first, lines = 0;
	ssize_t got;
	FILE *to;
	int file;

	if (program_log < 0)
		return;
	while (length < ROOM && (got = pread(program_log, records + length, ROOM - length, length)) > 0)
		length += got;
	for (i = 0; i + RECORD <= length; i += RECORD)
		if (normalise(records + i))
			memmove(records + RECORD * kept++, records + i, RECORD);
	qsort(records, kept, RECORD, by_content);
	file = open(below("programs.txt"), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	to = file < 0 ? NULL : fdopen(file, "w");
	if (!to)
		return;	/* the step's own end is what matters */
	for (first = 0; first < kept && lines < MAX_LINES; first = i, lines++) {
		for (i = first + 1; i < kept; i++)
			if (memcmp(records + RECORD * first, records + RECORD * i, RECORD))
				break;
		write_line(to, records + RECORD * first, i - first);
	}
	if (length + RECORD > ROOM || lines == MAX_LINES)
		fputs("full\n", to);
	fclose(to);
}
