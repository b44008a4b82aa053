/* SPDX-License-Identifier: Apache-2.0 */
/* shim.h - what the parts of libmaid-shim.so share */
#ifndef SHIM_H
#define SHIM_H

#define EXPORT __attribute__((visibility("default")))

/* The program's setting KEY, a string, or NULL where it has none. */
const char *setting(const char *key);

/* Hands the process back to QEMU, if nothing has come of it so far; otherwise returns. */
void give_up(void);

/* Something was done that a second start of the program would do again (shim_effects.c). */
extern int has_effects;

/* With the setting "division": lets INT64_MIN / -1 be what it is on most machines. */
void prepare_division(void);

#endif
