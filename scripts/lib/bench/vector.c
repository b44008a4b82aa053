/*
 * The SIMD-heavy job of `scripts/bench cpu`: loops that gcc -O3 turns into vector instructions of
 * the distribution's baseline, and the C library's string functions, which it chooses by what the
 * CPU has. Its one line of output is the same on every CPU model of a target.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define N 4096

static float a[N], b[N];
static double d[N];
static int16_t s[N], t[N];
static uint8_t p[N], q[N];
static char text[3 * N], copy[3 * N];

static void fill(void)
{
	uint32_t x = 1;

	for (int i = 0; i < N; i++) {
		x = x * 1664525 + 1013904223;
		a[i] = (x >> 16) / 65536.0f;
		b[i] = (x >> 8 & 0xffff) / 65536.0f;
		d[i] = a[i];
		s[i] = x >> 16;
		t[i] = x >> 8;
		p[i] = x >> 24;
		q[i] = x >> 16;
	}
	for (int i = 0; i < 3 * N - 1; i++)
		text[i] = 'a' + i % 23;
}

static void scale(float k)
{
	for (int i = 0; i < N; i++)
		b[i] = b[i] * 0.5f + a[i] * k;
}

static void add(double k)
{
	for (int i = 0; i < N; i++)
		d[i] = d[i] * k + b[i];
}

static uint32_t dot(void)
{
	uint32_t sum = 0;

	for (int i = 0; i < N; i++)
		sum += s[i] * t[i];
	return sum;
}

static uint32_t difference(void)
{
	uint32_t sum = 0;

	for (int i = 0; i < N; i++)
		sum += p[i] > q[i] ? p[i] - q[i] : q[i] - p[i];
	return sum;
}

static void blend(void)
{
	for (int i = 0; i < N; i++)
		p[i] = (p[i] + q[i] + 1) >> 1;
}

static uint32_t strings(int round)
{
	uint32_t sum = 0;

	for (int size = 8; size < 3 * N; size += size / 2) {
		memcpy(copy, text + round % 7, size);
		copy[size] = 0;
		sum += strlen(copy);
		sum += memcmp(copy, text + round % 7, size) == 0;
		sum += memchr(copy, '~', size) == NULL;
		sum += strchr(copy, 'w') - copy;
		sum += strcmp(copy, text) > 0;
		memset(copy, round, size);
		memmove(copy + 3, copy, size);
	}
	return sum;
}

int main(int argc, char **argv)
{
	int rounds = argc > 1 ? atoi(argv[1]) : 1;
	uint32_t sum = 0;

	fill();
	for (int i = 0; i < rounds; i++) {
		scale(i & 3);
		add(0.25);
		sum = sum * 31 + dot();
		sum = sum * 31 + difference();
		blend();
		for (int j = 0; j < 4; j++)
			sum = sum * 31 + strings(i + j);
	}
	printf("%08x %.6f %.6f %d\n", sum, b[N / 3], d[N / 5], p[N / 7]);
	return 0;
}
