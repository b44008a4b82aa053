/* What the parts of maid-guard have in common. */
#ifndef GUARD_H
#define GUARD_H

/* Have `run` run on each CPU but the caller's, and the caller be quick; what that lacks, in words, or "". */
const char *be_fast(void *(*run)(void *));

/* No program that is less urgent may be in the way of this thread. 0, or the error. */
int hurry(void);

#endif
