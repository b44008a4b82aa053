// SPDX-License-Identifier: Apache-2.0
/*
 * shim_numbers.c - arithmetic that is not the same on x86 as on other machines
 *
 * Part of libmaid-shim.so (shim.c).
 *
 * A long double has 64 bits of precision on x86 and 113 on AArch64 and RISC-V,
 * which bash's printf shows in the digits of %f, %e, %g and %a. bash takes the
 * number from strtold and gives it to printf, without a look at it. So with the
 * setting "quad", strtold computes the 113 bits, keeps them, and returns what
 * stands for them: a NaN with a number in it; and printf prints those.
 *
 * Division of the least integer by -1 is an exception on x86, which kills a shell
 * that does not check for it (dash 0.5.12), and the same integer on the others.
 * With the setting "division" the exception's handler makes it so.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <limits.h>
#include <locale.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>
#include <unistd.h>

#include "shim.h"

#if defined(__x86_64__)

/* Numbers alive at a time: bash has one, and printf's arguments are read in order. */
#define KEPT	64
/* Room for a number without the digits that a precision asks for: 4933 before the point, grouped. */
#define ROOM	16384
#define STANDS	0xc06d616964000000ull	/* a quiet NaN's mantissa, "maid", a number */

union extended {
	long double value;
	struct {
		uint64_t mantissa;
		uint16_t exponent;
	} bits;
};

struct conversion {
	int width, precision;	/* -1: none */
	int left, zero, alternate, group;
	char sign;		/* '+', ' ' or 0 */
	char letter;
};

static __float128 kept[KEPT];
static unsigned next_kept;

EXPORT long double strtold(const char *text, char **end)
{
	static long double (*usual)(const char *, char **);
	union extended stands = { 0 };

	if (!setting("quad")) {
		if (!usual)
			usual = dlsym(RTLD_NEXT, "strtold");
		return usual(text, end);
	}
	kept[next_kept] = strtof128(text, end);
	stands.bits.exponent = 0x7fff;
	stands.bits.mantissa = STANDS | next_kept;
	next_kept = (next_kept + 1) % KEPT;
	return stands.value;
}

/* The number that @value stands for, or NULL for what is a number itself. */
static const __float128 *number_of(long double value)
{
	union extended stands = { .value = value };
	uint64_t index = stands.bits.mantissa - STANDS;

	return (stands.bits.exponent & 0x7fff) == 0x7fff && index < KEPT ? &kept[index] : NULL;
}

/*
 * Reads @format if it is a single conversion of a long double, taking a width and
 * a precision that it leaves open from @arguments.
 */
static int parse(const char *format, struct conversion *c, va_list *arguments)
{
	const char *at = format;

	memset(c, 0, sizeof *c);
	c->width = c->precision = -1;
	if (*at++ != '%')
		return 0;
	for (;; at++) {
		if (*at == '-')
			c->left = 1;
		else if (*at == '0')
			c->zero = 1;
		else if (*at == '#')
			c->alternate = 1;
		else if (*at == '\'')
			c->group = 1;
		else if (*at == '+' || (*at == ' ' && !c->sign))
			c->sign = *at;
		else if (*at != ' ')
			break;
	}
	if (*at == '*') {
		c->width = va_arg(*arguments, int);
		if (c->width < 0) {
			c->left = 1;
			c->width = -c->width;
		}
		at++;
	} else if (*at >= '0' && *at <= '9') {
		c->width = strtol(at, (char **)&at, 10);
	}
	if (*at == '.') {
		at++;
		if (*at == '*') {
			c->precision = va_arg(*arguments, int);
			at++;
		} else {
			c->precision = strtol(at, (char **)&at, 10);
		}
	}
	if (*at++ != 'L' || !*at || !strchr("aAeEfFgG", *at) || at[1])
		return 0;
	c->letter = *at;
	return 1;
}

static int digits(char *text, size_t size, int precision, char letter, __float128 number)
{
	char format[32] = "%.", *at = format + 2, reversed[12];
	int n = 0;

	if (precision < 0) {
		at = format + 1;
	} else {
		do
			reversed[n++] = '0' + precision % 10;
		while (precision /= 10);
		while (n)
			*at++ = reversed[--n];
	}
	*at++ = letter;
	*at = 0;
	return strfromf128(text, size, format, number);
}

/* With "#" there is always a point, and %g keeps its zeros (C11 7.21.6.1). */
static void alternate(char *text, size_t size, const struct conversion *c, __float128 number)
{
	const char *point = localeconv()->decimal_point;
	int precision = c->precision;
	char letter = c->letter;

	if (letter == 'g' || letter == 'G') {
		const char *exponent;
		int x;

		precision = precision < 0 ? 6 : precision ? precision : 1;
		digits(text, size, precision - 1, letter - 2, number);
		exponent = strpbrk(text, "eE");
		x = exponent ? atoi(exponent + 1) : 0;
		if (!exponent || x < -4 || x >= precision)
			letter -= 2;
		else
			letter -= 1;
		precision -= letter == 'e' || letter == 'E' ? 1 : 1 + x;
	}
	digits(text, size, precision, letter, number);
	if (!strstr(text, point)) {
		char *end = text + strcspn(text, letter == 'a' || letter == 'A' ? "pP" : "eE");

		if (strlen(text) + strlen(point) >= size)
			return;
		memmove(end + strlen(point), end, strlen(end) + 1);
		memcpy(end, point, strlen(point));
	}
}

/* Puts the locale's separator into the digits before the point (grouping: localeconv(3)). */
static void group(char *text)
{
	const struct lconv *locale = localeconv();
	const char *separator = locale->thousands_sep, *sizes = locale->grouping;
	char *end = text + strspn(text, "0123456789"), *at = end;

	while (*separator && *sizes > 0 && *sizes != CHAR_MAX && at - text > *sizes) {
		at -= *sizes;
		memmove(at + strlen(separator), at, strlen(at) + 1);
		memcpy(at, separator, strlen(separator));
		if (sizes[1])
			sizes++;
	}
}

static char *fill(char *at, char character, int count)
{
	for (; count > 0; count--)
		*at++ = character;
	return at;
}

/* The number as text, NULL where there is no room; @length without the 0 that ends it. */
static char *printed(const struct conversion *c, __float128 number, int *length)
{
	size_t room = ROOM + (c->precision > 0 ? c->precision : 0);
	char *text = malloc(room + (c->width > 0 ? c->width : 0)), *work, *first, *at;
	int finite, missing;
	char sign = c->sign;

	work = text ? malloc(room) : NULL;
	if (!work) {
		free(text);
		return NULL;
	}
	if (c->alternate)
		alternate(work, room, c, number);
	else
		digits(work, room, c->precision, c->letter, number);
	first = work;
	if (*first == '-')
		sign = *first++;
	finite = *first >= '0' && *first <= '9';
	if (!finite)
		first[3] = 0;	/* "inf" has no point */
	else if (c->group && strchr("fFgG", c->letter))
		group(first);
	missing = c->width - (int)strlen(first) - (sign != 0);
	at = text;
	if (!c->left && !(c->zero && finite))
		at = fill(at, ' ', missing);
	if (sign)
		*at++ = sign;
	if (!c->left && c->zero && finite) {
		if (first[0] == '0' && (first[1] | 32) == 'x') {
			*at++ = *first++;
			*at++ = *first++;
		}
		at = fill(at, '0', missing);
	}
	while (*first)
		*at++ = *first++;
	if (c->left)
		at = fill(at, ' ', missing);
	*at = 0;
	*length = at - text;
	free(work);
	return text;
}

/*
 * What @format prints, if that is a kept number; NULL if it is anything else, which
 * is then the C library's to print.
 */
static char *print_kept(const char *format, va_list arguments, int *length)
{
	const __float128 *number;
	struct conversion c;
	char *text = NULL;
	va_list copy;

	if (!setting("quad"))
		return NULL;
	va_copy(copy, arguments);
	if (parse(format, &c, &copy)) {
		number = number_of(va_arg(copy, long double));
		if (number)
			text = printed(&c, *number, length);
	}
	va_end(copy);
	return text;
}

EXPORT int __printf_chk(int flag, const char *format, ...)
{
	extern int __vprintf_chk(int, const char *, va_list);
	va_list arguments;
	char *text;
	int n;

	va_start(arguments, format);
	text = print_kept(format, arguments, &n);
	if (!text)
		n = __vprintf_chk(flag, format, arguments);
	else if (fwrite(text, 1, n, stdout) != (size_t)n)
		n = -1;
	free(text);
	va_end(arguments);
	return n;
}

EXPORT int __vsnprintf_chk(char *to, size_t size, int flag, size_t room, const char *format,
			   va_list arguments)
{
	static int (*usual)(char *, size_t, int, size_t, const char *, va_list);
	char *text;
	int n;

	text = print_kept(format, arguments, &n);
	if (!text) {
		if (!usual)
			usual = dlsym(RTLD_NEXT, "__vsnprintf_chk");
		return usual(to, size, flag, room, format, arguments);
	}
	if (size && size <= room) {
		size_t copied = (size_t)n < size ? (size_t)n : size - 1;

		memcpy(to, text, copied);
		to[copied] = 0;
	}
	free(text);
	return n;
}

static void divided(int number, siginfo_t *info, void *context)
{
	greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
	const unsigned char *code = (const unsigned char *)registers[REG_RIP];

	/* idiv %r64 (REX.W f7 /7, a register): the dividend is INT64_MIN, so the divisor -1. */
	if (info->si_code > 0 && (code[0] & 0xf8) == 0x48 && code[1] == 0xf7 && (code[2] & 0xf8) == 0xf8 &&
	    registers[REG_RAX] == INT64_MIN && registers[REG_RDX] == -1) {
		registers[REG_RDX] = 0;
		registers[REG_RIP] += 3;
		return;
	}
	/* Any other one ends the process: again at the same instruction, or sent again. */
	signal(number, SIG_DFL);
	if (info->si_code <= 0)
		raise(number);
}

void prepare_division(void)
{
	struct sigaction action = { .sa_sigaction = divided, .sa_flags = SA_SIGINFO }, before;

	if (!setting("division") || sigaction(SIGFPE, NULL, &before) ||
	    before.sa_handler != SIG_DFL)
		return;
	sigaction(SIGFPE, &action, NULL);
}

#else

void prepare_division(void)
{
}

#endif
