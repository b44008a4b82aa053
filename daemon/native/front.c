// SPDX-License-Identifier: Apache-2.0
/*
 * front.c - runs inside maid's copy of a static QEMU, before QEMU itself
 *
 * maid/emulation/bake.py appends this code to a copy of the interpreter as a
 * segment of its own and makes it the entry point. It gets the process as the
 * kernel made it, puts the arguments that were baked in after argv[0], and
 * jumps to QEMU's own entry point. There is no second exec and nothing in the
 * environment, so docker, buildah and a shell get the CPU model unchanged.
 *
 * What it changes and what it does not. The kernel's stack is (x86-64 and
 * AArch64 alike, see the ELF part of both psABIs)
 *
 *	sp -> argc, argv[0] ... argv[argc - 1], 0, envp ..., 0, auxv ... AT_NULL
 *
 * with sp a multiple of 16. To insert N words after argv[0], argc and argv[0]
 * move down by N words; what follows stays in place. With an odd N that would
 * break the alignment, so then everything after argv[0], up to and including
 * AT_NULL, moves down by one word too. No string and no auxv value changes,
 * and nothing above the vectors is written.
 *
 * When it steps aside. Never on account of how the program was started:
 *
 * - Without binfmt_misc's P flag the kernel's argv is "interpreter, path,
 *   argument...", with it "interpreter, path, argv[0], argument..."; started
 *   by hand it is whatever the caller wrote. QEMU's options stand before the
 *   path in all three, so "after argv[0]" is always the right place, and a
 *   caller's own option, coming later, wins.
 * - Under AT_SECURE (a setuid program and the C flag) the CPU must be the same
 *   as for every other program. The arguments come from the file, which is
 *   root's, and not from the caller, so they may be set. The caller's
 *   environment is not looked at then.
 * - A user who sets QEMU_CPU means it, but QEMU lets an option win over the
 *   environment. So then a baked -cpu and its value are left out, and QEMU
 *   does what it would do without maid.
 * - With argc 0 (only by hand, and before Linux 5.18) there is no argv[0] to
 *   put anything after: nothing is inserted.
 *
 * Before that, a native program may stand in for the foreign one: front_native.c.
 *
 * This code runs in every emulated process, setuid ones too. It has no writable
 * data, no relocations and no libc, and all its loops are bounded by the params
 * block or by the kernel's own terminators.
 */
#include "front.h"

#define MAX_ARGUMENTS	8
#define TEXT_SIZE	1024

/* uapi/linux/elf-em.h */
#if defined(__x86_64__)
#define MACHINE		62
#elif defined(__aarch64__)
#define MACHINE		183
#else
#error "the front is written for x86-64 and AArch64"
#endif

/*
 * Filled in by bake.py, which finds it by its magic. Both sides of the layout
 * must agree: bump the version when it changes.
 */
struct params {
	char magic[16];
	uint32_t version;
	uint32_t machine;	/* e_machine this front was built for */
	int64_t entry;		/* QEMU's entry point, relative to _start */
	uint32_t count;		/* arguments, at most MAX_ARGUMENTS */
	uint32_t room;		/* bytes in text */
	uint64_t has_store;	/* 0: there is none, native programs are not looked for */
	struct store store;
	char text[TEXT_SIZE];	/* the arguments, each ended by a 0 */
};

static const struct params params
__attribute__((section(".params"), used, aligned(16))) = {
	.magic = "maid\177front\177args",
	.version = 2,
	.machine = MACHINE,
	.room = TEXT_SIZE,
};

/* What _start needs to go on; small enough to come back in two registers. */
struct onward {
	word *sp;
	word entry;
};

struct onward front(word *sp);
extern const char _start[] __attribute__((visibility("hidden")));

/* The block as baked: the compiler must not take the values above for granted. */
static const struct params *baked(void)
{
	const struct params *p = &params;

	__asm__("" : "+r"(p));
	return p;
}

static int is_set(char *const *envp, const char *name_and_equals)
{
	for (; *envp; envp++)
		if (starts(*envp, name_and_equals))
			return 1;
	return 0;
}

/* Lists the baked arguments in @list, less those that give way; returns how many. */
static size_t wanted(const struct params *p, int cpu_chosen, const char **list)
{
	const char *text = p->text, *end = p->text + TEXT_SIZE;
	size_t n = 0;
	int skip = 0;

	for (uint32_t i = 0; i < p->count && i < MAX_ARGUMENTS; i++) {
		const char *argument = text;

		while (text < end && *text)
			text++;
		if (text == end)	/* not ended: bake.py never writes that */
			return 0;
		text++;
		if (skip)
			skip = 0;
		else if (cpu_chosen && equal(argument, "-cpu"))
			skip = 1;
		else
			list[n++] = argument;
	}
	return n;
}

/*
 * Inserts @n words after argv[0]; returns the new stack pointer. The caller has
 * kept MAX_ARGUMENTS words below @sp free. @auxv is the auxiliary vector's start.
 */
static word *insert(word *sp, const word *auxv, const char **list, size_t n)
{
	size_t odd = n & 1;
	word *to = sp - n - odd;

	to[0] = sp[0] + n;
	to[1] = sp[1];
	for (size_t i = 0; i < n; i++)
		to[2 + i] = (word)list[i];
	if (odd) {
		while (auxv[0] != AT_NULL)
			auxv += 2;
		for (word *w = sp + 2; w < auxv + 2; w++)
			w[-1] = w[0];
	}
	return to;
}

__attribute__((used)) struct onward front(word *sp)
{
	const struct params *p = baked();
	struct onward onward = { sp, (word)_start + (word)p->entry };
	struct process process = { sp[0], (char **)(sp + 1), NULL, NULL };
	const char *list[MAX_ARGUMENTS];
	char **end;
	int cpu_chosen;
	size_t n;

	if (process.argc < 1)
		return onward;
	process.envp = process.argv + process.argc + 1;
	for (end = process.envp; *end; end++)
		;
	process.auxv = (const word *)(end + 1);
	if (p->has_store)
		native(&process, &p->store);
	cpu_chosen = !auxiliary(process.auxv, AT_SECURE, 0) && is_set(process.envp, "QEMU_CPU=");
	n = wanted(p, cpu_chosen, list);
	if (n)
		onward.sp = insert(sp, process.auxv, list, n);
	return onward;
}

/*
 * The entry point. The kernel starts a program with all general registers 0 but
 * the stack pointer (ELF_PLAT_INIT on x86-64, start_thread on AArch64), and the
 * psABI gives a meaning to one of them, %rdx or x0: a function for atexit. That
 * one is passed on as it came, the others are 0 again, but for the one that
 * holds the jump's destination. 64 bytes below the stack pointer are kept free
 * for insert(): MAX_ARGUMENTS words.
 */
#if defined(__x86_64__)
__asm__(".section .text.start, \"ax\", @progbits\n"
	".globl _start\n"
	".hidden _start\n"
	".type _start, @function\n"
	"_start:\n"
	"	mov	%rdx, %rbx\n"
	"	mov	%rsp, %rdi\n"
	"	sub	$64, %rsp\n"
	"	and	$-16, %rsp\n"
	"	call	front\n"
	"	mov	%rax, %rsp\n"
	"	mov	%rdx, %r11\n"
	"	mov	%rbx, %rdx\n"
	"	xor	%eax, %eax\n"
	"	xor	%ebx, %ebx\n"
	"	xor	%ecx, %ecx\n"
	"	xor	%esi, %esi\n"
	"	xor	%edi, %edi\n"
	"	xor	%ebp, %ebp\n"
	"	xor	%r8d, %r8d\n"
	"	xor	%r9d, %r9d\n"
	"	xor	%r10d, %r10d\n"
	"	jmp	*%r11\n"
	".size _start, . - _start\n"
	".text\n");
#else
/*
 * Where QEMU is built with branch target identification, this segment is mapped
 * guarded as well: hence the landing pad (a no-op elsewhere, written as a hint
 * for assemblers that do not know it), and the jump through x16, which alone
 * with x17 may go to a "bti c" such as the C library's _start has.
 */
__asm__(".section .text.start, \"ax\", @progbits\n"
	".globl _start\n"
	".hidden _start\n"
	".type _start, %function\n"
	"_start:\n"
	"	hint	#34\n"
	"	mov	x19, x0\n"
	"	mov	x0, sp\n"
	"	sub	sp, sp, #64\n"
	"	bl	front\n"
	"	mov	sp, x0\n"
	"	mov	x16, x1\n"
	"	mov	x0, x19\n"
	"	mov	x1, xzr\n"
	"	mov	x2, xzr\n"
	"	mov	x3, xzr\n"
	"	mov	x4, xzr\n"
	"	mov	x5, xzr\n"
	"	mov	x6, xzr\n"
	"	mov	x7, xzr\n"
	"	mov	x8, xzr\n"
	"	mov	x9, xzr\n"
	"	mov	x10, xzr\n"
	"	mov	x11, xzr\n"
	"	mov	x12, xzr\n"
	"	mov	x13, xzr\n"
	"	mov	x14, xzr\n"
	"	mov	x15, xzr\n"
	"	mov	x17, xzr\n"
	"	mov	x18, xzr\n"
	"	mov	x19, xzr\n"
	"	mov	x29, xzr\n"
	"	mov	x30, xzr\n"
	"	br	x16\n"
	".size _start, . - _start\n"
	".text\n");
#endif
