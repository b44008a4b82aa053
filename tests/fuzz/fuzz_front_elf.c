// SPDX-License-Identifier: Apache-2.0
/* The input is a program's file: the front looks for its build-id. */
#include "front_elf.c"
#undef AT_FDCWD
#undef AT_SYMLINK_NOFOLLOW
#include "fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	unsigned char *buffer = malloc(WINDOW_SIZE);
	char text[2 * ID_SIZE + 1];
	struct build_id id;
	static int file = -1;

	fuzz_file(&file, data, size);
	MUST(lseek(file, 7, SEEK_SET) == 7);
	build_id_of_file(file, buffer, &id);
	MUST(lseek(file, 0, SEEK_CUR) == 7);
	MUST(id.size <= ID_SIZE);
	build_id_text(&id, text);
	MUST(strlen(text) == 2 * id.size);
	/* What was found is in the file. */
	MUST(!id.size || memmem(data, size, id.bytes, id.size));
	free(buffer);
	return 0;
}
