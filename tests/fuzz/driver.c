// SPDX-License-Identifier: Apache-2.0
/*
 * driver.c - runs a fuzz target where there is no libFuzzer: with any compiler, and the same inputs
 * each time
 *
 *	TARGET [-runs=N] [-max_total_time=SECONDS] [-seed=N] [-artifact_prefix=PREFIX] [PLACE...]
 *
 * The options are libFuzzer's, and so is what is said at the end, so that either may be linked to a
 * target (LLVMFuzzerTestOneInput). A PLACE is a file or a directory of inputs to begin with; with files
 * alone they are only run, to repeat a finding. Inputs are made of others by small changes, and kept for
 * further ones where they reach code that none before has reached: gcc's -fsanitize-coverage=trace-pc
 * tells. -runs counts what is executed, -seed is the first of a fixed sequence of random numbers.
 *
 * An input that makes the target crash, abort or take longer than LIMIT seconds is written to
 * PREFIXcrash-HASH, and the exit status is not 0.
 */
#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define UNSEEN __attribute__((no_sanitize("address"), no_sanitize("undefined")))
#define LIMIT 10
#define MAX_SIZE 16384
#define MAX_CORPUS 4096
#define EDGES (1 << 16)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
void __sanitizer_set_death_callback(void (*callback)(void));

struct input {
	uint8_t *data;
	size_t size;
};

static struct input corpus[MAX_CORPUS];
static size_t corpus_count;
static const char *prefix = "";
static uint8_t current[MAX_SIZE];
static size_t current_size;
static uint64_t state = 1;

/* The edges between places of the code that were passed, by this input and by any. */
static uint8_t seen[EDGES];
static size_t seen_count, new_count;
static uintptr_t previous;

UNSEEN void __sanitizer_cov_trace_pc(void)
{
	/* Where the program lies in memory differs from run to run; distances do not. */
	uintptr_t here = (uintptr_t)__builtin_return_address(0) - (uintptr_t)LLVMFuzzerTestOneInput;
	uintptr_t edge = (here * 0x9e3779b1u ^ previous * 0x85ebca6bu) >> 4 & (EDGES - 1);

	previous = here;
	if (!seen[edge]) {
		seen[edge] = 1;
		new_count++;
	}
}

/* xorshift64* (Vigna, 2016): a fixed sequence for each seed, on every machine. */
static uint64_t next_random(void)
{
	state ^= state >> 12;
	state ^= state << 25;
	state ^= state >> 27;
	return state * 0x2545f4914f6cdd1dull;
}

static size_t below(size_t limit)
{
	return limit ? (size_t)(next_random() >> 11) % limit : 0;
}

/* Writes the current input away. Called while the program dies, also from signal handlers. */
static void save(void)
{
	uint64_t hash = 0xcbf29ce484222325ull;
	char path[4096];
	int file;

	for (size_t i = 0; i < current_size; i++)
		hash = (hash ^ current[i]) * 0x100000001b3ull;
	snprintf(path, sizeof(path), "%scrash-%016llx", prefix, (unsigned long long)hash);
	file = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
	if (file < 0 || write(file, current, current_size) != (ssize_t)current_size)
		dprintf(2, "the input could not be saved in %s\n", path);
	else
		dprintf(2, "Test unit written to %s\n", path);
	close(file);
}

static void on_signal(int number)
{
	dprintf(2, number == SIGALRM ? "ERROR: longer than %d seconds\n" : "ERROR: signal %d\n",
		number == SIGALRM ? LIMIT : number);
	save();
	_exit(77);
}

static void run(const uint8_t *data, size_t size)
{
	/* In memory of exactly its size, so that a read beyond its end is seen. */
	uint8_t *exact = malloc(size ? size : 1);

	memcpy(exact, data, size);
	memmove(current, data, size);
	current_size = size;
	previous = 0;
	new_count = 0;
	alarm(LIMIT);
	LLVMFuzzerTestOneInput(exact, size);
	free(exact);
}

static void keep(const uint8_t *data, size_t size)
{
	struct input *input;

	if (corpus_count == MAX_CORPUS)
		return;
	input = &corpus[corpus_count++];
	input->data = malloc(size ? size : 1);
	memcpy(input->data, data, size);
	input->size = size;
}

/* Takes in the file; the target has run it. */
static void read_file(const char *path)
{
	static uint8_t data[MAX_SIZE];
	int file = open(path, O_RDONLY);
	ssize_t size = file < 0 ? -1 : read(file, data, sizeof(data));

	if (size < 0) {
		perror(path);
		exit(2);
	}
	close(file);
	run(data, (size_t)size);
	seen_count += new_count;
	keep(data, (size_t)size);
}

static void read_directory(const char *path)
{
	struct dirent **names;
	char file[4096];
	int count = scandir(path, &names, NULL, alphasort);

	for (int i = 0; i < count; i++) {
		if (*names[i]->d_name != '.') {
			snprintf(file, sizeof(file), "%s/%s", path, names[i]->d_name);
			read_file(file);
		}
		free(names[i]);
	}
	free(names);
}

/* Makes a gap of @length bytes at @at, as far as there is room. */
static size_t insert(uint8_t *data, size_t size, size_t at, size_t length)
{
	if (size + length > MAX_SIZE)
		return size;
	memmove(data + at + length, data + at, size - at);
	return size + length;
}

static size_t change(uint8_t *data, size_t size)
{
	static const uint8_t odd[] = { 0, 1, 2, 3, 4, 8, 0x7f, 0x80, 0xfe, 0xff, '"', '\\', '{', '[', '/', '-' };
	const struct input *other = &corpus[below(corpus_count)];
	size_t at = below(size + 1), length, from, old = size;

	switch (below(9)) {
	case 0:
		if (size)
			data[at % size] ^= (uint8_t)(1u << below(8));
		return size;
	case 1:
		if (size)
			data[at % size] = odd[below(sizeof(odd))];
		return size;
	case 2:
		if (size)
			data[at % size] = (uint8_t)next_random();
		return size;
	case 3:	/* a run of one byte */
		length = 1 + below(16);
		size = insert(data, size, at, length);
		if (size > old)
			memset(data + at, odd[below(sizeof(odd))], length);
		return size;
	case 4:
		length = 1 + below(size / 4 + 1);
		if (at + length > size)
			return size;
		memmove(data + at, data + at + length, size - at - length);
		return size - length;
	case 5:
		return at;	/* cut */
	case 6:	/* a piece of another */
		if (!other->size)
			return size;
		from = below(other->size);
		length = 1 + below(other->size - from);
		size = insert(data, size, at, length);
		if (size > old)
			memcpy(data + at, other->data + from, length);
		return size;
	case 7:	/* a number grows or shrinks */
		if (size)
			data[at % size] += (uint8_t)(below(9) - 4);
		return size;
	default:	/* a piece once more */
		if (!size)
			return size;
		from = below(size);
		length = 1 + below(size - from < 64 ? size - from : 64);
		{
			uint8_t piece[64];

			memcpy(piece, data + from, length);
			size = insert(data, size, at, length);
			if (size > old)
				memcpy(data + at, piece, length);
		}
		return size;
	}
}

int main(int argc, char **argv)
{
	static const int deadly[] = { SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT, SIGALRM };
	static uint8_t data[MAX_SIZE];
	unsigned long long runs = 0, limit = ~0ull;
	double seconds = 1e9;
	struct timespec begun, now;
	int is_repeating = 1;
	struct stat about;

	__sanitizer_set_death_callback(save);
	for (size_t i = 0; i < sizeof(deadly) / sizeof(*deadly); i++)
		signal(deadly[i], on_signal);
	for (int i = 1; i < argc; i++) {
		if (!strncmp(argv[i], "-runs=", 6))
			limit = strtoull(argv[i] + 6, NULL, 10);
		else if (!strncmp(argv[i], "-max_total_time=", 16))
			seconds = strtod(argv[i] + 16, NULL);
		else if (!strncmp(argv[i], "-seed=", 6))
			state = strtoull(argv[i] + 6, NULL, 10) * 2 + 1;
		else if (!strncmp(argv[i], "-artifact_prefix=", 17))
			prefix = argv[i] + 17;
	}
	for (int i = 1; i < argc; i++) {
		if (*argv[i] == '-')
			continue;
		if (stat(argv[i], &about) == 0 && S_ISDIR(about.st_mode)) {
			is_repeating = 0;
			read_directory(argv[i]);
		} else {
			read_file(argv[i]);
		}
	}
	runs = corpus_count;
	if (!corpus_count)
		keep((const uint8_t *)"", 0);
	clock_gettime(CLOCK_MONOTONIC, &begun);
	while (!(is_repeating && runs) && runs < limit) {
		const struct input *input = &corpus[below(corpus_count)];
		size_t size = input->size;

		if (runs % 64 == 0) {
			clock_gettime(CLOCK_MONOTONIC, &now);
			if ((double)(now.tv_sec - begun.tv_sec) >= seconds)
				break;
		}
		memcpy(data, input->data, size);
		for (size_t changes = 1 + below(5); changes; changes--)
			size = change(data, size);
		run(data, size);
		runs++;
		if (new_count) {
			seen_count += new_count;
			keep(data, size);
		}
	}
	alarm(0);
	dprintf(2, "stat::number_of_executed_units: %llu\n", runs);
	dprintf(2, "stat::edges: %zu\nstat::corpus: %zu\n", seen_count, corpus_count);
	return 0;
}
