/*
 * What the parts of maid-step share: options.c reads what is asked for, step.c runs and ends a step,
 * mounts.c makes its mounts, points.c their places in the root file system, programs.c says what was started in it.
 */
#ifndef MAID_STEP_H
#define MAID_STEP_H

#define MAX_BINDS 256
#define MAX_CGROUPS 16
#define MAX_POINTS 512

/* Where something is mounted in the root file system, on a file or on a directory. */
struct point {
	const char *path;
	int is_file;
};

/* What was asked for; descriptors are -1 where there is none. */
struct step {
	const char *directory;	/* the step's own: rootfs/, lower/, changes/, sys/, bind/N are made in it */
	const char *hide;	/* unmounted for the runtime, or NULL */
	int rootfs;
	int changes;		/* a directory with upper/ and work/: changes go there */
	int caller;		/* the mount namespace in which the descriptors were opened */
	int reopen;		/* whether a descriptor may be opened again by its path */
	const char *init;	/* the container's first process, attached at init, or NULL */
	const char *profile;	/* the program that the command runs under, attached at profile, or NULL */
	int store;		/* the native store's directory */
	int sys;		/* whether sys/ is wanted: the machine's /sys without what is mounted in it */
	int owner, group;	/* whose overlay it is, or -1 for root */
	const char *user_ids, *group_ids;	/* with an owner: the ids it has, as in uid_map, each as itself */
	int binds[MAX_BINDS];
	unsigned char bind_readonly[MAX_BINDS];
	int bind_count;
	int user;		/* the step's user namespace, where its root is not ours */
	int keeps_groups;	/* whether the caller's groups count in there */
	struct point points[MAX_POINTS];
	int point_count;
};

/* What bounds a step; `network` is -1 for the machine's, `timeout` in milliseconds, 0 for none. */
struct limits {
	const char *cgroups[MAX_CGROUPS];
	int cgroup_count;
	int network;
	long timeout;
	const char *groups;
};

/* Reads the options; the command after them, or NULL when it makes no sense. */
char **read_options(int argc, char **argv, struct step *step, struct limits *limits);

/* Moves into a mount namespace of its own and makes everything that the bundle names. */
void make_mounts(struct step *step);

/* Makes the places in the root file system that are not there, as the step's root. */
void make_points(const struct step *step);

/* Makes the log of the step's programs in the step's mount namespace, at programs/log. */
void make_program_log(void);

/* Writes programs.txt, once nothing of the step runs any more; nothing where there is no log. */
void tally_programs(void);

/* A detached, read-only clone of the mount of the program at `path`, to be executed by descriptor. */
int readonly_program(const char *path);

/* Writes `what` and errno's words as the step's result, and ends this process with status 125. */
void fail(const char *what) __attribute__((noreturn));

/* DIRECTORY/name, valid until the next call. */
const char *below(const char *name);

#endif
