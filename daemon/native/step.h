/* What the two halves of maid-step share: step.c runs and ends a step, mounts.c makes its mounts. */
#ifndef MAID_STEP_H
#define MAID_STEP_H

#define MAX_BINDS 256

/* What was asked for; descriptors are -1 where there is none. */
struct step {
	const char *directory;	/* the step's own: rootfs/, lower/, changes/, sys/, bind/N are made in it */
	const char *hide;	/* unmounted for the runtime, or NULL */
	int rootfs;
	int changes;		/* a directory with upper/ and work/: changes go there */
	int caller;		/* the mount namespace in which the descriptors were opened */
	int reopen;		/* whether a descriptor may be opened again by its path */
	const char *init;	/* the container's first process, attached at init, or NULL */
	int sys;		/* whether sys/ is wanted: the machine's /sys without what is mounted in it */
	int owner, group;	/* whose overlay it is, or -1 for root */
	const char *user_ids, *group_ids;	/* with an owner: the ids it has, as in uid_map, each as itself */
	int binds[MAX_BINDS];
	unsigned char bind_readonly[MAX_BINDS];
	int bind_count;
};

/* Moves into a mount namespace of its own and makes everything that the bundle names. */
void make_mounts(struct step *step);

/* A detached, read-only clone of the mount of the program at `path`, to be executed by descriptor. */
int readonly_program(const char *path);

/* Writes `what` and errno's words as the step's result, and ends this process with status 125. */
void fail(const char *what) __attribute__((noreturn));

/* DIRECTORY/name, valid until the next call. */
const char *below(const char *name);

#endif
