// SPDX-License-Identifier: Apache-2.0
/*
 * A strict scanner: what is not JSON by the letter of RFC 8259 is refused as a whole, so whoever asks
 * never acts on a text that it and the container runtime understand differently. Bytes above 127 are
 * taken as they are; whether they are UTF-8 makes no difference here.
 *
 * Every function gets a text's end and never reads at or beyond it; those that scan return where the
 * scanned thing ends, or NULL where it is none.
 */
#include <stdint.h>
#include <string.h>

#include "json.h"

static const char *blanks(const char *at, const char *end)
{
	while (at < end && (*at == ' ' || *at == '\t' || *at == '\n' || *at == '\r'))
		at++;
	return at;
}

/* The value of the four hexadecimal digits at @at, or -1. */
static int hexadecimal(const char *at, const char *end)
{
	int value = 0, i;

	if (end - at < 4)
		return -1;
	for (i = 0; i < 4; i++) {
		char digit = at[i];

		value <<= 4;
		if (digit >= '0' && digit <= '9')
			value |= digit - '0';
		else if ((digit | 0x20) >= 'a' && (digit | 0x20) <= 'f')
			value |= (digit | 0x20) - 'a' + 10;
		else
			return -1;
	}
	return value;
}

static const char *string(const char *at, const char *end)
{
	if (at == end || *at != '"')
		return NULL;
	for (at++; at < end; at++) {
		if (*at == '"')
			return at + 1;
		if ((unsigned char)*at < 0x20)
			return NULL;
		if (*at != '\\')
			continue;
		if (++at == end || !*at || !strchr("\"\\/bfnrtu", *at))
			return NULL;
		if (*at == 'u') {
			if (hexadecimal(at + 1, end) < 0)
				return NULL;
			at += 4;
		}
	}
	return NULL;
}

static const char *digits(const char *at, const char *end)
{
	const char *first = at;

	while (at < end && *at >= '0' && *at <= '9')
		at++;
	return at > first ? at : NULL;
}

static const char *number(const char *at, const char *end)
{
	if (at < end && *at == '-')
		at++;
	if (at < end && *at == '0')
		at++;
	else
		at = digits(at, end);
	if (at && at < end && *at == '.')
		at = digits(at + 1, end);
	if (at && at < end && (*at == 'e' || *at == 'E')) {
		at++;
		if (at < end && (*at == '+' || *at == '-'))
			at++;
		at = digits(at, end);
	}
	return at;
}

static const char *word(const char *at, const char *end, const char *what)
{
	size_t length = strlen(what);

	return (size_t)(end - at) >= length && !memcmp(at, what, length) ? at + length : NULL;
}

static const char *value(const char *at, const char *end, int depth);

/* An object or an array, from its opening character on; a member's name is like a second value. */
static const char *collection(const char *at, const char *end, int depth)
{
	char close = *at == '{' ? '}' : ']';

	if (!depth)
		return NULL;
	at = blanks(at + 1, end);
	if (at < end && *at == close)
		return at + 1;
	for (;;) {
		if (close == '}') {
			at = string(at, end);
			if (!at)
				return NULL;
			at = blanks(at, end);
			if (at == end || *at != ':')
				return NULL;
			at = blanks(at + 1, end);
		}
		at = value(at, end, depth - 1);
		if (!at)
			return NULL;
		at = blanks(at, end);
		if (at == end)
			return NULL;
		if (*at == close)
			return at + 1;
		if (*at != ',')
			return NULL;
		at = blanks(at + 1, end);
	}
}

static const char *value(const char *at, const char *end, int depth)
{
	if (at == end)
		return NULL;
	switch (*at) {
	case '{':
	case '[':
		return collection(at, end, depth);
	case '"':
		return string(at, end);
	case 't':
		return word(at, end, "true");
	case 'f':
		return word(at, end, "false");
	case 'n':
		return word(at, end, "null");
	default:
		return number(at, end);
	}
}

bool json_read(const char *text, size_t length, struct json *whole)
{
	const char *end = text + length;

	whole->text = blanks(text, end);
	whole->end = value(whole->text, end, JSON_DEPTH);
	return whole->end && blanks(whole->end, end) == end;
}

/* From here on the text is known to be JSON, so that scanning cannot fail and depth has its limit. */

static struct json value_at(const char *at, const char *end)
{
	return (struct json){ at, value(at, end, JSON_DEPTH) };
}

/* What follows a value in its array or object: the next one's begin, or NULL at the end of all. */
static const char *after(const char *at, const char *end)
{
	at = blanks(at, end);
	return *at == ',' ? blanks(at + 1, end) : NULL;
}

/* The first thing in a collection, or NULL where it is empty. */
static const char *inside(struct json collection)
{
	const char *at = blanks(collection.text + 1, collection.end);

	return at == collection.end - 1 ? NULL : at;
}

bool json_member(struct json object, const char *name, struct json *found)
{
	const char *at;
	bool is_found = false;
	char known[32];

	if (*object.text != '{')
		return false;
	for (at = inside(object); at; at = after(at, object.end)) {
		struct json key = { at, string(at, object.end) }, content;

		at = blanks(blanks(key.end, object.end) + 1, object.end);	/* beyond the colon */
		content = value_at(at, object.end);
		at = content.end;
		if (!json_string(key, known, sizeof(known)) || strcmp(known, name))
			continue;
		if (is_found)
			return false;
		*found = content;
		is_found = true;
	}
	return is_found;
}

bool json_next(struct json array, struct json *element)
{
	const char *at;

	if (*array.text != '[')
		return false;
	at = element->text ? after(element->end, array.end) : inside(array);
	if (!at)
		return false;
	*element = value_at(at, array.end);
	return true;
}

/* Writes the code point as UTF-8; returns how many bytes. */
static size_t utf8(uint32_t code, char bytes[4])
{
	if (code < 0x80) {
		bytes[0] = code;
		return 1;
	}
	if (code < 0x800) {
		bytes[0] = 0xc0 | code >> 6;
		bytes[1] = 0x80 | (code & 0x3f);
		return 2;
	}
	if (code < 0x10000) {
		bytes[0] = 0xe0 | code >> 12;
		bytes[1] = 0x80 | (code >> 6 & 0x3f);
		bytes[2] = 0x80 | (code & 0x3f);
		return 3;
	}
	bytes[0] = 0xf0 | code >> 18;
	bytes[1] = 0x80 | (code >> 12 & 0x3f);
	bytes[2] = 0x80 | (code >> 6 & 0x3f);
	bytes[3] = 0x80 | (code & 0x3f);
	return 4;
}

/*
 * The character for the escape whose letter is at *@at, which is moved to the escape's end. Half of a
 * surrogate pair stands for nothing: it becomes U+FFFD, as in Go, in which most engines are written.
 */
static uint32_t escaped(const char **at, const char *end)
{
	static const char letters[] = "bfnrt", meant[] = "\b\f\n\r\t";
	char kind = *(*at)++;
	const char *letter = strchr(letters, kind);
	uint32_t code;
	int low = -1;

	if (letter)
		return meant[letter - letters];
	if (kind != 'u')
		return kind;
	code = hexadecimal(*at, end);
	*at += 4;
	if (code < 0xd800 || code > 0xdfff)
		return code;
	if (code < 0xdc00 && end - *at >= 6 && (*at)[0] == '\\' && (*at)[1] == 'u')
		low = hexadecimal(*at + 2, end);
	if (low < 0xdc00 || low > 0xdfff)
		return 0xfffd;
	*at += 6;
	return 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
}

bool json_string(struct json value, char *text, size_t size)
{
	const char *at = value.text + 1, *end = value.end - 1;
	size_t used = 0, length;
	char bytes[4];

	if (*value.text != '"')
		return false;
	while (at < end) {
		length = 1;
		if (*at != '\\') {
			bytes[0] = *at++;
		} else {
			at++;
			length = utf8(escaped(&at, end), bytes);
		}
		if (!bytes[0] || used + length >= size)
			return false;
		memcpy(text + used, bytes, length);
		used += length;
	}
	text[used] = 0;
	return true;
}
