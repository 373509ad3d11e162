/* Bits to floats: the byte is the mask of the vector that is written. See pack_step.h for its other half. */
#ifndef REVEDGE_UNPACK_LANES_H
#define REVEDGE_UNPACK_LANES_H

#include "revedge.h"

/* Write as many of n zeros and ones as the machine's vectors hold whole; return how many. */
typedef int64_t unpack_lanes_t(const uint8_t *bytes, float *s, int64_t n);

static int64_t unpack_lanes_none(const uint8_t *bytes, float *s, int64_t n) {
    (void)bytes, (void)s, (void)n;
    return 0;
}

#ifdef HAS_INTRINSICS
__attribute__((target("avx512f"))) static int64_t unpack_lanes_512(const uint8_t *bytes, float *s,
                                                                   int64_t n) {
    const __m512 one = _mm512_set1_ps(1.0f);
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) {
        uint16_t two;
        memcpy(&two, bytes + i / 8, 2);
        _mm512_storeu_ps(s + i, _mm512_maskz_mov_ps((__mmask16)two, one));
    }
    return i;
}

__attribute__((target("avx2"))) static int64_t unpack_lanes_256(const uint8_t *bytes, float *s,
                                                                int64_t n) {
    const __m256i bit = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    const __m256 one = _mm256_set1_ps(1.0f);
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) {
        const __m256i own = _mm256_and_si256(_mm256_set1_epi32(bytes[i / 8]), bit);
        const __m256 set = _mm256_castsi256_ps(_mm256_cmpeq_epi32(own, bit));
        _mm256_storeu_ps(s + i, _mm256_and_ps(set, one));
    }
    return i;
}

INLINE unpack_lanes_t *unpack_lanes_here(void) {
    const int vector_bits = vector_bits_here();
    if (vector_bits == 512) return unpack_lanes_512;
    if (vector_bits == 256) return unpack_lanes_256;
    return unpack_lanes_none;
}
#else
INLINE unpack_lanes_t *unpack_lanes_here(void) { return unpack_lanes_none; }
#endif

#endif
