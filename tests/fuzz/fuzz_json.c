// SPDX-License-Identifier: Apache-2.0
/* The input is a text: it is read, and everything in it visited, deeper than its readers ever do. */
#include "json.c"
#include "fuzz.h"

static size_t visited;

static void visit(struct json value, struct json whole)
{
	struct json inner, element = { 0 };
	char text[64];

	/* A member may be asked for by any name and often: what is visited is bounded by its text. */
	if (visited++ > 20000)
		return;
	MUST(value.text >= whole.text && value.text < value.end && value.end <= whole.end);
	if (json_string(value, text, sizeof(text)))
		MUST(strlen(text) < sizeof(text));
	if (json_member(value, "root", &inner))
		visit(inner, whole);
	if (json_member(value, "a", &inner))
		visit(inner, whole);
	while (json_next(value, &element))
		visit(element, whole);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct json whole;

	visited = 0;
	if (json_read((const char *)data, size, &whole)) {
		MUST((const char *)data <= whole.text && whole.end <= (const char *)data + size);
		visit(whole, whole);
	}
	return 0;
}
