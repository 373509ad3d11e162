/* Spikes to bits: element i of the tensor is bit i % 8 of byte i / 8. */
#ifndef REVEDGE_BIT_BLOCK_H
#define REVEDGE_BIT_BLOCK_H

#include "revedge.h"

INLINE unsigned byte_of(const float *s, int64_t n) {
    unsigned byte = 0;
    for (int64_t k = 0; k < n; ++k) byte |= (unsigned)(s[k] != 0.0f) << k;
    return byte;
}

/* Whole bytes: n elements from element 8 * (first byte). */
INLINE void pack_aligned(const float *s, uint8_t *bytes, int64_t n) {
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) {
        /* Each comparison gives one byte of 0 or 1; the product gathers them in the top byte. */
        uint8_t ones[8];
        for (int k = 0; k < 8; ++k) ones[k] = s[i + k] != 0.0f;
        uint64_t word = 0;
        for (int k = 0; k < 8; ++k) word |= (uint64_t)ones[k] << (8 * k);
        bytes[i / 8] = (uint8_t)((word * UINT64_C(0x0102040810204080)) >> 56);
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
