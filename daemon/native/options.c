/* The options of maid-step: pairs of a name and a value; step.c says what they mean. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "step.h"

static long number(const char *text, long limit)
{
	char *end;
	long value;

	errno = 0;
	value = strtol(text, &end, 10);
	if (!*text || *end || errno || value < 0 || value > limit) {
		errno = EINVAL;
		fail(text);
	}
	return value;
}

/* A descriptor that was handed over. It must not reach the runtime: only the standard streams do. */
static int descriptor(const char *text)
{
	int value = number(text, INT_MAX);

	if (fcntl(value, F_SETFD, FD_CLOEXEC) < 0)
		fail("a descriptor that was not handed over");
	return value;
}

static int opened(const char *path)
{
	int value = open(path, O_RDONLY | O_CLOEXEC);

	if (value < 0)
		fail(path);
	return value;
}

static void add_point(struct step *step, const char *path, int is_file)
{
	if (step->point_count == MAX_POINTS) {
		errno = E2BIG;
		fail(path);
	}
	step->points[step->point_count].path = path;
	step->points[step->point_count++].is_file = is_file;
}

/* Where the last bind is mounted: on what it is itself. */
static void add_point_of_bind(struct step *step, const char *path)
{
	struct stat what;

	if (!step->bind_count || fstat(step->binds[step->bind_count - 1], &what) < 0)
		fail(path);
	add_point(step, path, !S_ISDIR(what.st_mode));
}

char **read_options(int argc, char **argv, struct step *step, struct limits *limits)
{
	const char *name, *value;
	int i;

	for (i = 1; i + 1 < argc && strcmp(argv[i], "--"); i += 2) {
		name = argv[i];
		value = argv[i + 1];
		if (!strcmp(name, "directory"))
			step->directory = value;
		else if (!step->directory)
			break;	/* it comes first: nothing can be said without it */
		else if (!strcmp(name, "rootfs"))
			step->rootfs = descriptor(value);
		else if (!strcmp(name, "changes"))
			step->changes = descriptor(value);
		else if (!strcmp(name, "caller"))
			step->caller = descriptor(value);
		else if (!strcmp(name, "reopen"))
			step->reopen = number(value, 1);
		else if (!strcmp(name, "init"))
			step->init = value;
		else if (!strcmp(name, "profile"))
			step->profile = value;
		else if (!strcmp(name, "store"))
			step->store = descriptor(value);
		else if (!strcmp(name, "sys"))
			step->sys = number(value, 1);
		else if (!strcmp(name, "network"))
			limits->network = descriptor(value);
		else if (!strcmp(name, "owner"))
			step->owner = number(value, INT_MAX);
		else if (!strcmp(name, "group"))
			step->group = number(value, INT_MAX);
		else if (!strcmp(name, "user-ids"))
			step->user_ids = value;
		else if (!strcmp(name, "group-ids"))
			step->group_ids = value;
		else if (!strcmp(name, "groups")) {
			limits->groups = value;
			step->keeps_groups = 1;
		} else if (!strcmp(name, "timeout"))
			limits->timeout = number(value, LONG_MAX);
		else if (!strcmp(name, "user"))
			step->user = opened(value);
		else if (!strcmp(name, "point"))
			add_point(step, value, 0);
		else if (!strcmp(name, "point-file"))
			add_point(step, value, 1);
		else if (!strcmp(name, "at"))
			add_point_of_bind(step, value);
		else if (!strcmp(name, "hide"))
			step->hide = value;
		else if (!strncmp(name, "bind", 4) && step->bind_count < MAX_BINDS) {
			step->bind_readonly[step->bind_count] = !strcmp(name, "bind-readonly");
			step->binds[step->bind_count++] = descriptor(value);
		} else if (!strcmp(name, "cgroup") && limits->cgroup_count < MAX_CGROUPS)
			limits->cgroups[limits->cgroup_count++] = value;
		else
			break;
	}
	if (step->rootfs < 0 || i + 1 >= argc || strcmp(argv[i], "--") ||
	    (step->owner >= 0 && (step->group < 0 || !step->user_ids || !step->group_ids)))
		return NULL;
	return argv + i + 1;
}
