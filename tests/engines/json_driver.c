// SPDX-License-Identifier: Apache-2.0
/*
 * What daemon/native/json.c makes of texts, for test_json.py: reads a length (four bytes, this machine's
 * order) and that many bytes, again and again, and answers each with a line: "-" where they are no JSON
 * text, else the string at root.path and the string elements of the array mounts, in hexadecimal, "-" where
 * there is none. Compiled with sanitizers, and each text in memory of exactly its size.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include "json.h"

static void print_string(struct json value)
{
	char text[4096];
	size_t i;

	putchar(' ');
	if (!json_string(value, text, sizeof(text))) {
		putchar('-');
		return;
	}
	putchar('"');
	for (i = 0; text[i]; i++)
		printf("%02x", (unsigned char)text[i]);
}

static void answer(const char *text, size_t length)
{
	struct json whole, value, element = { 0 };

	if (!json_read(text, length, &whole)) {
		puts("-");
		return;
	}
	putchar('+');
	if (json_member(whole, "root", &value) && json_member(value, "path", &value))
		print_string(value);
	else
		printf(" -");
	if (json_member(whole, "mounts", &value))
		while (json_next(value, &element))
			print_string(element);
	putchar('\n');
}

int main(void)
{
	uint32_t length;
	char *text;

	while (fread(&length, sizeof(length), 1, stdin) == 1) {
		text = malloc(length ? length : 1);
		if (!text || fread(text, 1, length, stdin) != length)
			return 1;
		answer(text, length);
		fflush(stdout);
		free(text);
	}
	return 0;
}
