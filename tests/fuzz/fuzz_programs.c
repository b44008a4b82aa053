// SPDX-License-Identifier: Apache-2.0
/*
 * The log of a step's programs, into which the step can write anything: what maid-step makes of it is
 * lines of three words, in a bounded number, and counts no more than there are records.
 */
#include "programs.c"
#include "fuzz.h"

void fail(const char *what)
{
	MUST(!what);
	abort();
}

const char *below(const char *name)
{
	return fuzz_place(name);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static char line[256];
	size_t lines = 0, counted = 0;
	FILE *told;

	fuzz_file(&program_log, data, size);
	tally_programs();
	told = fopen(fuzz_place("programs.txt"), "re");
	MUST(told);
	while (fgets(line, sizeof(line), told)) {
		char kind, id[2 * BUILD_ID + 2];
		size_t number;

		MUST(strchr(line, '\n'));
		MUST(sscanf(line, "%c %45s %zu", &kind, id, &number) == 3 && strchr("nfe", kind) && number);
		counted += number;
		lines++;
	}
	fclose(told);
	MUST(lines <= MAX_LINES && counted <= size / RECORD);
	return 0;
}
