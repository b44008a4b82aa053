// SPDX-License-Identifier: Apache-2.0
/*
 * shim_llvm.c - what a native LLVM has to do as the foreign one does
 *
 * Part of libmaid-shim.so (shim.c). LLVM computes in integers, in its own soft floating point, and
 * in what IEEE 754 determines; maid/acceleration/llvm.py says what was looked at. Here is the rest:
 * the default target ("triple=" setting), where LLVM has its own compiled in; and ld.lld's layout by
 * a call graph, which is computed in doubles that AArch64's compiler fused, so it is left to QEMU.
 */
#ifdef __x86_64__
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "shim.h"

/* libstdc++'s std::string, of which only the long form is needed here. */
struct string {
	char *data;
	size_t size, capacity, unused;
};

/* std::string llvm::sys::getDefaultTargetTriple() */
EXPORT struct string _ZN4llvm3sys22getDefaultTargetTripleB5cxx11Ev(void)
{
	static struct string (*next)(void);
	const char *triple = setting("triple");
	struct string made = { .size = triple ? strlen(triple) : 0 };

	made.capacity = made.size;
	made.data = triple ? malloc(made.size + 1) : NULL;
	if (made.data) {
		strcpy(made.data, triple);
		return made;
	}
	if (!next)
		next = dlsym(RTLD_NEXT, "_ZN4llvm3sys22getDefaultTargetTripleB5cxx11Ev");
	return next();
}

/*
 * std::vector<uint64_t> llvm::codelayout::computeCacheDirectedLayout(ArrayRef<uint64_t> sizes,
 * ArrayRef<uint64_t> counts, ArrayRef<EdgeCount> calls, ArrayRef<uint64_t> offsets): those that do
 * not fit into registers stand on the stack, where they stay for the jump.
 */
#define LAYOUT	"_ZN4llvm10codelayout26computeCacheDirectedLayoutE" \
		"NS_8ArrayRefImEES2_NS1_INS0_9EdgeCountEEES2_"

/*
 * The function itself, for what can no longer be handed back: ld.lld has given warnings. What it has
 * changed so far without writing is its output, which it removes first of all.
 */
__attribute__((visibility("hidden"), used)) void *layout_or_qemu(void)
{
	has_effects = 0;
	give_up();
	return dlsym(RTLD_NEXT, LAYOUT);
}

__asm__(".globl " LAYOUT "\n"
	".type " LAYOUT ", @function\n"
	LAYOUT ":\n"
	"	endbr64\n"
	"	push %rdi\n	push %rsi\n	push %rdx\n"
	"	push %rcx\n	push %r8\n	push %r9\n"
	"	sub $8, %rsp\n"
	"	call layout_or_qemu\n"
	"	add $8, %rsp\n"
	"	pop %r9\n	pop %r8\n	pop %rcx\n"
	"	pop %rdx\n	pop %rsi\n	pop %rdi\n"
	"	jmp *%rax\n");
#endif
