/* Spikes to bits: element i of the tensor is bit i % 8 of byte i / 8. */
#ifndef REVEDGE_BIT_BLOCK_H
#define REVEDGE_BIT_BLOCK_H

#include "revedge.h"

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "bits are gathered from words whose first byte is the lowest"
#endif

enum { PACK_BLOCK = 512 };

INLINE unsigned byte_of(const float *s, int64_t n) {
    unsigned byte = 0;
    for (int64_t k = 0; k < n; ++k) byte |= (unsigned)(s[k] != 0.0f) << k;
    return byte;
}

/* Whole bytes: n elements from element 8 * (first byte). In two loops, of which the compiler turns
 * the first, a comparison per element, into vector code. */
INLINE void pack_aligned(const float *s, uint8_t *bytes, int64_t n) {
    uint8_t ones[PACK_BLOCK];
    int64_t i = 0;
    while (i + 8 <= n) {
        const int64_t take = smaller(PACK_BLOCK, (n - i) / 8 * 8);
        for (int64_t k = 0; k < take; ++k) ones[k] = s[i + k] != 0.0f;
        for (int64_t k = 0; k < take; k += 8) {
            /* Eight bytes of 0 or 1, the first lowest; the product gathers them in the top byte. */
            uint64_t word;
            memcpy(&word, ones + k, 8);
            bytes[(i + k) / 8] = (uint8_t)((word * UINT64_C(0x0102040810204080)) >> 56);
        }
        i += take;
    }
    if (i < n) bytes[i / 8] = (uint8_t)byte_of(s + i, n - i);
}

/* n elements from any bit on, into zeroed bytes of which other threads may own some bits. */
INLINE void pack_anywhere(const float *s, uint8_t *bytes, int64_t first_bit, int64_t n) {
    for (int64_t i = 0; i < n;) {
        const int64_t bit = first_bit + i, room = 8 - bit % 8, take = smaller(room, n - i);
        const unsigned byte = byte_of(s + i, take) << (bit % 8);
#pragma omp atomic
        bytes[bit / 8] |= (uint8_t)byte;
        i += take;
    }
}

#endif
