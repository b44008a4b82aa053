// SPDX-License-Identifier: Apache-2.0
/*
 * front_elf.c - the GNU build-id of a program of any class and byte order
 *
 * The file may be anything, whatever its name and its first bytes say. Every
 * field of it is a number that is compared with a limit before it is used,
 * computed in 64 bits so that no sum of fields can wrap around, and the number
 * of reads is bounded: what is not found within that has no build-id.
 *
 * Formats: System V gABI, chapters 4 (header) and 5 (program header, notes);
 * the note's owner and type are those of the GNU tools (elf.h).
 */
#include "front_calls.h"

#define ELFCLASS32	1
#define ELFCLASS64	2
#define ELFDATA2LSB	1
#define ELFDATA2MSB	2
#define EI_CLASS	4
#define EI_DATA		5
#define PT_NOTE		4
#define NT_GNU_BUILD_ID	3
#define NOTE_HEADER	12
#define OWNER_SIZE	4	/* of "GNU" and its end */
/* As Linux and QEMU: a larger program header table is refused. This leaves out PN_XNUM, too. */
#define TABLE_LIMIT	65536
/*
 * 16 reads cover the largest table, one or two more each note segment that is
 * not in the same piece of the file. Programs need one or two in all.
 */
#define MAX_READS	64

/* A piece of the file, moved where it is needed. */
struct window {
	int file;
	unsigned int reads;	/* so many are left */
	uint64_t offset;	/* in the file, of the bytes below */
	size_t size;		/* how many there are */
	unsigned char *bytes;
};

/* Where the fields are, by class; the program header's, and its size, after the file header's. */
struct layout {
	unsigned char width;	/* of addresses and offsets */
	unsigned char header, phoff, phentsize, phnum;
	unsigned char entry, offset, filesz, align;
};

static const struct layout layout32 = { 4, 52, 28, 42, 44, 32, 4, 16, 28 };
static const struct layout layout64 = { 8, 64, 32, 54, 56, 56, 8, 32, 48 };

/* @size bytes of the file from @offset, or NULL where it does not have them. */
static const unsigned char *look(struct window *window, uint64_t offset, size_t size)
{
	long got;

	if (offset >= window->offset && offset - window->offset <= window->size &&
	    window->size - (offset - window->offset) >= size)
		return window->bytes + (offset - window->offset);
	if (!window->reads || offset > INT64_MAX)
		return NULL;
	window->reads--;
	window->size = 0;
	got = call_pread(window->file, window->bytes, WINDOW_SIZE, offset);
	if (got < 0)
		return NULL;
	window->offset = offset;
	window->size = (size_t)got;
	return window->size >= size ? window->bytes : NULL;
}

/* The number of @width bytes at @bytes. */
static uint64_t number(const unsigned char *bytes, unsigned int width, int big)
{
	uint64_t result = 0;

	for (unsigned int i = 0; i < width; i++)
		result = result << 8 | bytes[big ? i : width - 1 - i];
	return result;
}

static uint64_t aligned(uint64_t size, unsigned int unit)
{
	return (size + unit - 1) & ~(uint64_t)(unit - 1);
}

/*
 * Reads the note at @offset, which may take @size bytes, and the build-id if it
 * is that. Returns how many it takes with its padding, 0 if there is none.
 */
static uint64_t read_note(struct window *window, uint64_t offset, uint64_t size, unsigned int unit,
			  int big, struct build_id *id)
{
	const unsigned char *note = size < NOTE_HEADER ? NULL : look(window, offset, NOTE_HEADER);
	uint64_t name, content, type, start;

	if (!note)
		return 0;
	name = number(note, 4, big);
	content = number(note + 4, 4, big);
	type = number(note + 8, 4, big);
	/* Three numbers of 32 bits: no sum of them reaches 64. */
	start = aligned(NOTE_HEADER + name, unit);
	if (start > size || content > size - start)
		return 0;
	if (type == NT_GNU_BUILD_ID && name == OWNER_SIZE && content && content <= ID_SIZE) {
		note = look(window, offset, (size_t)(start + content));
		if (!note)
			return 0;
		if (note[12] == 'G' && note[13] == 'N' && note[14] == 'U' && !note[15]) {
			for (size_t i = 0; i < content; i++)
				id->bytes[i] = note[start + i];
			id->size = (size_t)content;
		}
	}
	return aligned(start + content, unit);
}

/*
 * Looks for the build-id among the notes in @size bytes of the file from @offset,
 * and in one note directly behind them if they fill these bytes exactly: Go's
 * linker (cmd/link/internal/ld/elf.go) writes GNU's note behind its own, and a
 * PT_NOTE for its own only.
 */
static void find_note(struct window *window, uint64_t offset, uint64_t size, unsigned int unit,
		      int big, struct build_id *id)
{
	do {
		uint64_t taken = read_note(window, offset, size, unit, big, id);

		if (!taken || taken > size || id->size)
			return;
		/* Both were below half of what 64 bits hold. */
		offset += taken;
		size -= taken;
	} while (size);
	read_note(window, offset, NOTE_HEADER + OWNER_SIZE + ID_SIZE, 4, big, id);
}

void build_id_of_file(int file, unsigned char *buffer, struct build_id *id)
{
	struct window window = { file, MAX_READS, 0, 0, buffer };
	const struct layout *layout;
	const unsigned char *bytes;
	uint64_t table, count;
	int big;

	id->size = 0;
	bytes = look(&window, 0, layout32.header);
	if (!bytes || bytes[0] != 0x7f || bytes[1] != 'E' || bytes[2] != 'L' || bytes[3] != 'F' ||
	    (bytes[EI_CLASS] != ELFCLASS32 && bytes[EI_CLASS] != ELFCLASS64) ||
	    (bytes[EI_DATA] != ELFDATA2LSB && bytes[EI_DATA] != ELFDATA2MSB))
		return;
	layout = bytes[EI_CLASS] == ELFCLASS64 ? &layout64 : &layout32;
	big = bytes[EI_DATA] == ELFDATA2MSB;
	bytes = look(&window, 0, layout->header);
	if (!bytes || number(bytes + layout->phentsize, 2, big) != layout->entry)
		return;
	table = number(bytes + layout->phoff, layout->width, big);
	count = number(bytes + layout->phnum, 2, big);
	if (count * layout->entry > TABLE_LIMIT || table > INT64_MAX)
		return;
	for (uint64_t i = 0; i < count; i++) {
		uint64_t offset, size;

		bytes = look(&window, table + i * layout->entry, layout->entry);
		if (!bytes)
			return;
		if (number(bytes, 4, big) != PT_NOTE)
			continue;
		offset = number(bytes + layout->offset, layout->width, big);
		size = number(bytes + layout->filesz, layout->width, big);
		/* Notes have units of 4 bytes; 8 only in segments that say so. */
		if (offset > INT64_MAX || size > INT64_MAX)
			continue;
		find_note(&window, offset, size,
			  number(bytes + layout->align, layout->width, big) == 8 ? 8 : 4, big, id);
		if (id->size)
			return;
	}
}

void build_id_of_path(const char *path, unsigned char *buffer, struct build_id *id)
{
	struct status status;
	int file = open_regular(path, O_RDONLY, &status);

	id->size = 0;
	if (file < 0)
		return;
	build_id_of_file(file, buffer, id);
	call_close(file);
}

void build_id_text(const struct build_id *id, char *text)
{
	for (size_t i = 0; i < id->size; i++) {
		*text++ = "0123456789abcdef"[id->bytes[i] >> 4];
		*text++ = "0123456789abcdef"[id->bytes[i] & 15];
	}
	*text = 0;
}
