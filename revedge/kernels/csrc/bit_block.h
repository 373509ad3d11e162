/* Spikes to bits: element i of the tensor is bit i % 8 of byte i / 8. */
#ifndef REVEDGE_BIT_BLOCK_H
#define REVEDGE_BIT_BLOCK_H

#include "revedge.h"

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "bits are gathered from words whose first byte is the lowest"
#endif

enum { PACK_BLOCK = 512 };

/* The first n (up to 8) of `ones`, each 0 or 1, in one byte. */
INLINE unsigned byte_of(const uint8_t *ones, int64_t n) {
    unsigned byte = 0;
    for (int64_t k = 0; k < n; ++k) byte |= (unsigned)ones[k] << k;
    return byte;
}

/* Whole bytes: n elements from element 8 * (first byte). */
INLINE void gather_aligned(const uint8_t *ones, uint8_t *bytes, int64_t n) {
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) {
        /* Eight bytes of 0 or 1, the first lowest; the product gathers them in the top byte. */
        uint64_t word;
        memcpy(&word, ones + i, 8);
        bytes[i / 8] = (uint8_t)((word * UINT64_C(0x0102040810204080)) >> 56);
    }
    if (i < n) bytes[i / 8] = (uint8_t)byte_of(ones + i, n - i);
}

/* n elements from any bit on, into zeroed bytes of which other threads may own some bits. */
INLINE void gather_anywhere(const uint8_t *ones, uint8_t *bytes, int64_t first_bit, int64_t n) {
    for (int64_t i = 0; i < n;) {
        const int64_t bit = first_bit + i, room = 8 - bit % 8, take = smaller(room, n - i);
        const unsigned byte = byte_of(ones + i, take) << (bit % 8);
#pragma omp atomic
        bytes[bit / 8] |= (uint8_t)byte;
        i += take;
    }
}

/* Spikes as floats to whole bytes. In two loops, of which the compiler turns the first, a
 * comparison per element, into vector code. */
INLINE void pack_aligned(const float *s, uint8_t *bytes, int64_t n) {
    uint8_t ones[PACK_BLOCK];
    for (int64_t i = 0; i < n; i += PACK_BLOCK) {
        const int64_t take = smaller(PACK_BLOCK, n - i);
        for (int64_t k = 0; k < take; ++k) ones[k] = s[i + k] != 0.0f;
        gather_aligned(ones, bytes + i / 8, take);
    }
}

#endif
