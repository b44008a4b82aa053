/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fuzz.h - what the fuzz targets share. Each includes the source that it is about, with that one's main
 * under another name, and has one function, libFuzzer's: LLVMFuzzerTestOneInput. What must hold besides
 * "no sanitizer says anything" is said by MUST.
 *
 * $FUZZ_PLACE is a directory of the target's own, made and removed by whoever starts it.
 */
#ifndef MAID_FUZZ_H
#define MAID_FUZZ_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define MUST(holds)                                                                                  \
	do {                                                                                         \
		if (!(holds)) {                                                                      \
			fprintf(stderr, "ERROR: does not hold: %s (%s:%d)\n", #holds, __FILE__,      \
				__LINE__);                                                           \
			abort();                                                                     \
		}                                                                                    \
	} while (0)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* $FUZZ_PLACE/name, valid until the next call. */
static inline const char *fuzz_place(const char *name)
{
	static char path[4096];
	const char *place = getenv("FUZZ_PLACE");

	MUST(place && *place == '/' && strlen(place) + strlen(name) + 2 < sizeof(path));
	strcpy(path, place);
	strcat(path, "/");
	return strcat(path, name);
}

/*
 * The part of the input up to the next @separator, as a copy of exactly its size, to be freed; *@data
 * and *@size are what comes after it.
 */
static inline uint8_t *fuzz_part(const uint8_t **data, size_t *size, uint8_t separator, size_t *length)
{
	const uint8_t *end = *size ? memchr(*data, separator, *size) : NULL;
	uint8_t *part;

	*length = end ? (size_t)(end - *data) : *size;
	part = malloc(*length ? *length : 1);
	memcpy(part, *data, *length);
	*data += *length + (end ? 1 : 0);
	*size -= *length + (end ? 1 : 0);
	return part;
}

/* Has *@file, -1 at first, be a file in memory with this content and its offset at 0. */
static inline void fuzz_file(int *file, const uint8_t *data, size_t size)
{
	if (*file < 0)
		*file = memfd_create("input", MFD_CLOEXEC);
	MUST(ftruncate(*file, 0) == 0 && pwrite(*file, data, size, 0) == (ssize_t)size);
	MUST(lseek(*file, 0, SEEK_SET) == 0);
}

#endif
