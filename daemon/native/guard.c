/*
 * maid-guard: puts back what is taken out of one binfmt_misc table, at once and without asking.
 *
 *   maid-guard SOCKET INOTIFY TABLE
 *
 * Three descriptors: a SOCK_SEQPACKET socket to the daemon, an inotify descriptor of the table's directory
 * (IN_MODIFY, IN_DELETE), and that directory. The first message says what to guard, as strings that each
 * end with a zero byte: how many repairs of one entry may follow each other at once, how many more a second,
 * and then four for each entry, the most important first:
 *
 *   NAME    its name
 *   STANDIN the name of its stand-in
 *   LINE    what registers the stand-in
 *   TEXT    what the kernel shows of either after the line "enabled"
 *
 * Where neither is in the table the stand-in is registered: NAME stays free for another tool that removes an
 * entry in order to register its own under that name. Where one is disabled that is TEXT byte for byte it is
 * enabled; so is the table as a whole. Nothing else is ever written, and nothing is decided here: the daemon
 * sees the same events, puts everything in order in its own time, and ends this process (SIGKILL) before it
 * takes an entry away itself. This process ends with the daemon, as the socket does.
 *
 * The first message to the daemon says, as a string, what of its speed this process has to do without; it is
 * empty when that is nothing. After each repair one more goes there: for each entry two 32-bit counts, of
 * registrations and of enablings, since the start; then one of enablings of the table. They are totals, so that
 * one which does not fit into the socket is no loss.
 *
 * What a minute of hostile resets costs is the time from the event to the write: hence a program of its own
 * that shares no lock with anybody, a real-time priority, and a thread on each CPU, all of which wait for the
 * same event. The one on the CPU where it happened is there first: it runs as soon as the write that did it
 * returns (measured: after 15 us, against 100 us and more from another CPU, which may be deep in its kernel).
 * Where any of this is not allowed it takes longer, and is said. What is done in one go is bounded, by the buckets of the entries and one for waking up at all, so that it
 * cannot eat the machine.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "guard.h"

#define SECOND 1000000000LL
#define MAX_ENTRIES 128
#define SHOWN 4096 /* more than the kernel shows of an entry: one page */

/* Wake-ups: so many at once, and one more for each of these nanoseconds. */
#define WAKES 1024
#define WAKE_INTERVAL (2 * SECOND / 1000)

/* Credit in nanoseconds: it grows with time up to `most`, and each use takes `price`. */
struct bucket {
	int64_t price, most, credit, seen;
};

struct entry {
	const char *name, *standin, *line, *text;
	struct bucket bucket;
	bool pending;
};

static struct entry entries[MAX_ENTRIES];
static int count;
static struct bucket table_bucket, wakes;
static bool table_pending;
static uint32_t done[2 * MAX_ENTRIES + 1];
static bool untold;
static int channel, events, table, registering = -1;
static char what[512 * 1024];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* of all of the above once there are threads */

static int64_t now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * SECOND + time.tv_nsec;
}

static void fill(struct bucket *bucket, int64_t price, int64_t uses)
{
	*bucket = (struct bucket){ price, price * uses, price * uses, now() };
}

/* Nanoseconds until the bucket allows a use; 0: now. */
static int64_t left(struct bucket *bucket)
{
	int64_t time = now();

	bucket->credit += time - bucket->seen;
	bucket->seen = time;
	if (bucket->credit > bucket->most)
		bucket->credit = bucket->most;
	return bucket->credit < bucket->price ? bucket->price - bucket->credit : 0;
}

static bool use(struct bucket *bucket)
{
	if (left(bucket))
		return false;
	bucket->credit -= bucket->price;
	return true;
}

static void fail(const char *message)
{
	fprintf(stderr, "maid-guard: %s: %s\n", message, strerror(errno));
	exit(1);
}

/* The next string of the message, or NULL. */
static const char *next(const char **at, const char *end)
{
	const char *string = *at;

	if (string >= end)
		return NULL;
	*at += strlen(string) + 1;
	return string;
}

static void receive(void)
{
	ssize_t length = recv(channel, what, sizeof(what) - 1, 0);
	const char *at = what, *end = what + length, *most, *rate;
	int64_t price, uses;

	if (length <= 0)
		fail("nothing to guard was named");
	most = next(&at, end);
	rate = next(&at, end);
	uses = most ? atoi(most) : 0;
	price = rate && atoi(rate) > 0 ? SECOND / atoi(rate) : 0;
	if (uses < 1 || !price) {
		errno = EINVAL;
		fail("the limits");
	}
	for (; at < end && count < MAX_ENTRIES; count++) {
		struct entry *entry = &entries[count];

		entry->name = next(&at, end);
		entry->standin = next(&at, end);
		entry->line = next(&at, end);
		entry->text = next(&at, end);
		if (!entry->text) {
			errno = EINVAL;
			fail("an entry");
		}
		fill(&entry->bucket, price, uses);
	}
	fill(&table_bucket, price, uses);
	fill(&wakes, WAKE_INTERVAL, WAKES);
}

static bool is_there(const char *name)
{
	return faccessat(table, name, F_OK, 0) == 0;
}

static bool put(const char *file, const char *text)
{
	int descriptor = openat(table, file, O_WRONLY | O_CLOEXEC);
	bool written;

	if (descriptor < 0)
		return false;
	written = write(descriptor, text, strlen(text)) >= 0;
	close(descriptor);
	return written;
}

/* Whether `file` shows the line "disabled" and then `text`. */
static bool is_disabled(const char *file, const char *text)
{
	static const char first[] = "disabled\n";
	const size_t head = sizeof(first) - 1;
	char shown[SHOWN];
	int descriptor = openat(table, file, O_RDONLY | O_CLOEXEC);
	ssize_t length;

	if (descriptor < 0)
		return false;
	length = read(descriptor, shown, sizeof(shown) - 1);
	close(descriptor);
	if (length < (ssize_t)head)
		return false;
	shown[length] = 0;
	return !strncmp(shown, first, head) && !strcmp(shown + head, text);
}

static bool enabled(const char *file, const char *text)
{
	return is_disabled(file, text) && put(file, "1");
}

static void repair(struct entry *entry)
{
	uint32_t *counts = &done[2 * (entry - entries)];
	uint32_t before = counts[0] + counts[1];

	/* EEXIST: the stand-in serves already. Anything else is for the daemon to find out and to say. */
	if (!is_there(entry->name) && write(registering, entry->line, strlen(entry->line)) > 0)
		counts[0]++;
	counts[1] += enabled(entry->name, entry->text) + enabled(entry->standin, entry->text);
	untold |= counts[0] + counts[1] != before;
}

static bool same(const char *name, const struct entry *entry)
{
	return !strcmp(name, entry->name) || !strcmp(name, entry->standin);
}

static void all_pending(void)
{
	table_pending = true;
	for (int i = 0; i < count; i++)
		entries[i].pending = true;
}

/* Take what inotify has, and note what it is about. Whether there was anything. */
static bool look(void)
{
	static char buffer[64 * 1024] __attribute__((aligned(8)));
	ssize_t length = read(events, buffer, sizeof(buffer));

	for (char *at = buffer; at < buffer + length;) {
		struct inotify_event *event = (struct inotify_event *)at;

		at += sizeof(*event) + event->len;
		if (event->mask & (IN_UNMOUNT | IN_IGNORED))
			exit(0); /* this table is no more */
		if (event->mask & IN_Q_OVERFLOW)
			all_pending();
		if (!event->len || !strcmp(event->name, "register"))
			continue;
		if (!strcmp(event->name, "status"))
			table_pending = true;
		for (int i = 0; i < count; i++)
			entries[i].pending |= same(event->name, &entries[i]);
	}
	return length > 0;
}

/* Repair what is pending, the most important first. Nanoseconds until there is more to do; -1: nothing. */
static int64_t work(void)
{
	int64_t wait = table_pending ? left(&table_bucket) : -1, each;

	if (table_pending && use(&table_bucket)) {
		table_pending = false;
		wait = -1;
		if (enabled("status", "")) {
			done[2 * count]++;
			untold = true;
		}
	}
	for (int i = 0; i < count; i++) {
		if (!entries[i].pending || !use(&entries[i].bucket))
			continue;
		entries[i].pending = false;
		repair(&entries[i]);
		look();
		i = -1; /* what came meanwhile may be more important */
	}
	for (int i = 0; i < count; i++) {
		if (!entries[i].pending)
			continue;
		each = left(&entries[i].bucket);
		if (wait < 0 || each < wait)
			wait = each;
	}
	return wait;
}

static void tell(void)
{
	size_t length = (2 * count + 1) * sizeof(*done);

	if (send(channel, done, length, MSG_DONTWAIT | MSG_NOSIGNAL) == (ssize_t)length)
		untold = false;
}

/* Do what there is to do now. Nanoseconds until there is more, -1 for none known; `paused`: whoever writes to
 * the table without end wakes nobody without end, so inotify has to wait as long. */
static int64_t turn(bool *paused)
{
	int64_t wait;

	if (look() && !use(&wakes))
		wakes.credit = 0; /* as good as used */
	wait = work();
	if (untold)
		tell();
	if (untold && (wait < 0 || wait > SECOND / 10))
		wait = SECOND / 10;
	*paused = left(&wakes) > 0;
	return *paused ? left(&wakes) : wait;
}

static void *stand_guard(void *unused)
{
	(void)unused;
	hurry();
	for (;;) {
		struct pollfd ready[] = { { channel, 0, 0 }, { events, POLLIN, 0 } };
		struct timespec limit;
		bool paused;
		int64_t wait;

		pthread_mutex_lock(&lock);
		wait = turn(&paused);
		pthread_mutex_unlock(&lock);
		if (paused)
			ready[1].fd = -1;
		limit = (struct timespec){ wait / SECOND, wait % SECOND };
		if (ppoll(ready, 2, wait < 0 ? NULL : &limit, NULL) < 0 && errno != EINTR)
			fail("ppoll");
		if (ready[0].revents)
			_exit(0); /* the daemon is gone, or wants nothing any more */
	}
	return NULL;
}

int main(int argc, char **argv)
{
	const char *lacks;

	if (argc != 4) {
		fprintf(stderr, "usage: maid-guard SOCKET INOTIFY TABLE\n");
		return 2;
	}
	channel = atoi(argv[1]);
	events = atoi(argv[2]);
	table = atoi(argv[3]);
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	receive();
	registering = openat(table, "register", O_WRONLY | O_CLOEXEC);
	if (registering < 0)
		fail("register");
	/* What happened before there was somebody to tell of it. */
	all_pending();
	pthread_mutex_lock(&lock); /* the first message comes first */
	lacks = be_fast(stand_guard);
	send(channel, lacks, strlen(lacks) + 1, MSG_NOSIGNAL);
	pthread_mutex_unlock(&lock);
	stand_guard(NULL);
}
