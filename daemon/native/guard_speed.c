/*
 * What makes maid-guard quick: a thread on each CPU, a real-time priority, memory that stays. None of it is
 * needed to repair; what cannot be had is noted in words.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>

#include "guard.h"

#ifndef MAX_THREADS
#define MAX_THREADS 256 /* 16 MiB of stacks; what happens on the CPUs beyond is repaired from another one */
#endif
#define MAX_CPUS (1 << 20) /* more than any kernel knows */
#define STACK (64 * 1024)

static char lacks[512];

/* Note what cannot be had. */
static void __attribute__((format(printf, 1, 2))) lack(const char *format, ...)
{
	size_t length = strlen(lacks);
	va_list values;

	if (length && length < sizeof(lacks) - 2)
		length += strlen(strcpy(lacks + length, "; "));
	va_start(values, format);
	vsnprintf(lacks + length, sizeof(lacks) - length, format, values);
	va_end(values);
}

/* Refused to an ordinary user's daemon, and by a kernel with CONFIG_RT_GROUP_SCHED to one in a control group of
 * the cpu controller, which has no real time unless somebody gives it some. Children would not inherit it, nor
 * do threads. */
int hurry(void)
{
	struct sched_param priority = { .sched_priority = 1 };
	int error;

	if (sched_setscheduler(0, SCHED_RR | SCHED_RESET_ON_FORK, &priority) == 0)
		return 0;
	error = errno;
	setpriority(PRIO_PROCESS, 0, -20); /* of this thread alone */
	return error;
}

/* The CPUs that this process may use, in a set of `size` bytes; NULL where the kernel does not say. */
static cpu_set_t *allowed_cpus(int *cpus, size_t *size)
{
	for (*cpus = CPU_SETSIZE; *cpus <= MAX_CPUS; *cpus *= 2) {
		cpu_set_t *allowed = CPU_ALLOC(*cpus);

		*size = CPU_ALLOC_SIZE(*cpus);
		if (!allowed)
			return NULL;
		if (sched_getaffinity(0, *size, allowed) == 0)
			return allowed;
		CPU_FREE(allowed);
		if (errno != EINVAL) /* EINVAL: the kernel's set is larger */
			return NULL;
	}
	return NULL;
}

/* A thread on the CPU `cpu`: one that runs `run`, or this one, if that is NULL. 0, or the error. */
static int begin(int cpu, cpu_set_t *one, size_t size, void *(*run)(void *))
{
	pthread_attr_t attributes;
	pthread_t thread;
	int error;

	CPU_ZERO_S(size, one);
	CPU_SET_S(cpu, size, one);
	if (!run)
		return sched_setaffinity(0, size, one) < 0 ? errno : 0;
	pthread_attr_init(&attributes);
	pthread_attr_setstacksize(&attributes, STACK);
	error = pthread_attr_setaffinity_np(&attributes, size, one);
	if (!error)
		error = pthread_create(&thread, &attributes, run, NULL);
	pthread_attr_destroy(&attributes);
	return error;
}

/* A thread on each CPU, one of which is the caller. One that cannot be had is done without. */
static void spread(void *(*run)(void *))
{
	int cpus, threads = 0, error = 0, wanted;
	size_t size;
	cpu_set_t *allowed = allowed_cpus(&cpus, &size), *one = NULL;

	if (allowed)
		one = CPU_ALLOC(cpus);
	if (!one) {
		lack("threads on the other CPUs (which there are is not told)");
		return;
	}
	wanted = CPU_COUNT_S(size, allowed);
	for (int cpu = 0; cpu < cpus && threads < MAX_THREADS && !error; cpu++) {
		if (!CPU_ISSET_S(cpu, size, allowed))
			continue;
		error = begin(cpu, one, size, threads ? run : NULL);
		threads += !error;
	}
	if (threads < wanted)
		lack("threads on %d of %d CPUs (%s)", wanted - threads, wanted,
		     error ? strerror(error) : "it has as many as it may");
	CPU_FREE(allowed);
	CPU_FREE(one);
}

const char *be_fast(void *(*run)(void *))
{
	int error;

	spread(run);
	error = hurry();
	if (error)
		lack("a real-time priority (%s)", strerror(error));
	/* So that no page has to be read first; and last, so that no thread is too much for the limit. */
	if (mlockall(MCL_CURRENT | MCL_FUTURE) < 0)
		lack("memory that stays (%s)", strerror(errno));
	return lacks;
}
