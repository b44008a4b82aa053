/* SPDX-License-Identifier: Apache-2.0 */
/* Reads a JSON text (RFC 8259) where it lies: nothing is copied, built or allocated. */
#ifndef MAID_JSON_H
#define MAID_JSON_H

#include <stdbool.h>
#include <stddef.h>

/* Deeper texts are refused; an OCI configuration has some ten levels. */
#define JSON_DEPTH 64

/* One value as it is written, without the blanks around it: text[0] says of which kind it is. */
struct json {
	const char *text, *end;
};

/*
 * Whether the @length bytes are one JSON text and nothing else; if so, *@value is what they hold.
 * The functions below take values that come from here.
 */
bool json_read(const char *text, size_t length, struct json *value);

/*
 * The member @name (plain ASCII) of an object. False where there is none, where @object is no object,
 * and where there are two: programs do not agree on which of them counts.
 */
bool json_member(struct json object, const char *name, struct json *value);

/*
 * The next element of an array: *@element begins as { 0 } and afterwards is the last one seen. False
 * after the last, and where @array is no array.
 */
bool json_next(struct json array, struct json *element);

/*
 * Decodes a string into @text, ended by a 0. False where it is no string, does not fit into @size
 * bytes, or has a 0 byte in it, which no path and no variable can have.
 */
bool json_string(struct json value, char *text, size_t size);

#endif
