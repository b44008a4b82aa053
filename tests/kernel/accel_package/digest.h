#ifndef DIGEST_H
#define DIGEST_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The 64-bit FNV-1a hash of some bytes. */
uint64_t digest(const void *data, size_t size);

/* The mean of some numbers, summed in the widest floating-point type. */
double mean(const double *values, size_t count);

#ifdef __cplusplus
}
#endif
#endif
