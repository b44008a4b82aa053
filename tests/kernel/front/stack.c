// SPDX-License-Identifier: Apache-2.0
/*
 * stack.c - an "interpreter" that shows how it was started
 *
 * Writes to standard output, as they were at its entry point: the general
 * registers (REGISTERS words), the stack pointer, the number of bytes of stack
 * that follow, those bytes (up to the end of AT_EXECFN's string, which is where
 * the kernel's part ends), and the strings of argv, each with its 0.
 * No C library, so nothing stands between the kernel and what it shows.
 */
typedef unsigned long word;

#define AT_EXECFN	31

#if defined(__x86_64__)
#define NR_write	1
#define NR_exit		60
__asm__(".globl _start\n"
	"_start:\n"
	"	push	%r15\n	push	%r14\n	push	%r13\n	push	%r12\n"
	"	push	%r11\n	push	%r10\n	push	%r9\n	push	%r8\n"
	"	push	%rbp\n	push	%rdi\n	push	%rsi\n	push	%rdx\n"
	"	push	%rcx\n	push	%rbx\n	push	%rax\n"
	"	mov	%rsp, %rdi\n"
	"	lea	15*8(%rsp), %rsi\n"
	"	and	$-16, %rsp\n"
	"	call	show\n");
#define REGISTERS	15

static long call(word number, word a, word b, word c)
{
	long result;

	__asm__ volatile("syscall" : "=a"(result) : "0"(number), "D"(a), "S"(b), "d"(c)
			 : "rcx", "r11", "memory");
	return result;
}
#else
#define NR_write	64
#define NR_exit		93
__asm__(".globl _start\n"
	"_start:\n"
	"	hint	#34\n"	/* bti c, as the C libraries' _start has it */
	"	sub	sp, sp, #256\n"
	"	stp	x0, x1, [sp]\n"
	"	stp	x2, x3, [sp, #16]\n"
	"	stp	x4, x5, [sp, #32]\n"
	"	stp	x6, x7, [sp, #48]\n"
	"	stp	x8, x9, [sp, #64]\n"
	"	stp	x10, x11, [sp, #80]\n"
	"	stp	x12, x13, [sp, #96]\n"
	"	stp	x14, x15, [sp, #112]\n"
	"	stp	x16, x17, [sp, #128]\n"
	"	stp	x18, x19, [sp, #144]\n"
	"	stp	x20, x21, [sp, #160]\n"
	"	stp	x22, x23, [sp, #176]\n"
	"	stp	x24, x25, [sp, #192]\n"
	"	stp	x26, x27, [sp, #208]\n"
	"	stp	x28, x29, [sp, #224]\n"
	"	str	x30, [sp, #240]\n"
	"	mov	x0, sp\n"
	"	add	x1, sp, #256\n"
	"	bl	show\n");
#define REGISTERS	31

static long call(word number, word a, word b, word c)
{
	register word x8 __asm__("x8") = number;
	register word x0 __asm__("x0") = a;
	register word x1 __asm__("x1") = b;
	register word x2 __asm__("x2") = c;

	__asm__ volatile("svc #0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2) : "memory");
	return x0;
}
#endif

static void put(const void *data, word size)
{
	const char *at = data;

	while (size) {
		long done = call(NR_write, 1, (word)at, size);

		if (done <= 0)
			call(NR_exit, 9, 0, 0);
		at += done;
		size -= done;
	}
}

static const char *after(const char *text)
{
	while (*text)
		text++;
	return text + 1;
}

__attribute__((used)) void show(const word *registers, const word *sp)
{
	char **argv = (char **)(sp + 1);
	const word *w = sp + 1 + sp[0] + 1;
	const char *end = 0;
	word size;

	while (*w)
		w++;
	for (w++; w[0]; w += 2)
		if (w[0] == AT_EXECFN)
			end = after((const char *)w[1]);
	size = end - (const char *)sp;
	put(registers, REGISTERS * sizeof(word));
	put(&sp, sizeof(sp));
	put(&size, sizeof(size));
	put(sp, size);
	for (word i = 0; i < sp[0]; i++)
		put(argv[i], after(argv[i]) - argv[i]);
	call(NR_exit, 0, 0, 0);
}
