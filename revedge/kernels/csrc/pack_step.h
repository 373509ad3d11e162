/* One time step whose spikes leave as bits: the comparison's own mask is what is stored.
 *
 * Only for whole vectors from a byte on; what is left over goes the portable way. Each function is
 * step_row of neuron_block.h, operation by operation, so the bits are those of WANT_BYTES.
 */
#ifndef REVEDGE_PACK_STEP_H
#define REVEDGE_PACK_STEP_H

#include "neuron_block.h"

/* Take a step of as many of n neurons as the machine's vectors hold whole; return how many. */
typedef int64_t pack_step_t(int mode, int hard, const float *y, affine_t a, float *v, uint8_t *bits,
                            int64_t n, const neuron_t *q);

static int64_t pack_step_none(int mode, int hard, const float *y, affine_t a, float *v,
                              uint8_t *bits, int64_t n, const neuron_t *q) {
    (void)mode, (void)hard, (void)y, (void)a, (void)v, (void)bits, (void)n, (void)q;
    return 0;
}

#ifdef HAS_INTRINSICS
#define INPUT(V, LOAD, MUL, ADD)                                                                   \
    V x = LOAD(y + j);                                                                             \
    if (mode == BY_ONE) x = ADD(MUL(x, scale1), shift1);                                           \
    if (mode == BY_EACH) x = ADD(MUL(x, LOAD(a.scale + j)), LOAD(a.shift + j));                    \
    const V h = ADD(ADD(MUL(LOAD(v + j), decay), MUL(x, gain)), bias)

#define CONSTANTS(V, SET)                                                                          \
    const V decay = SET(q->decay), gain = SET(q->gain), bias = SET(q->bias);                       \
    const V threshold = SET(q->v_threshold), v_reset = SET(q->v_reset);                            \
    const V scale1 = SET(mode == BY_ONE ? a.scale[0] : 1.0f);                                      \
    const V shift1 = SET(mode == BY_ONE ? a.shift[0] : 0.0f)

__attribute__((target("avx512f"), always_inline)) static inline int64_t
pack_row_512(int mode, int hard, const float *y, affine_t a, float *v, uint8_t *bits, int64_t n,
             const neuron_t *q) {
    CONSTANTS(__m512, _mm512_set1_ps);
    int64_t j = 0;
    for (; j + 16 <= n; j += 16) {
        INPUT(__m512, _mm512_loadu_ps, _mm512_mul_ps, _mm512_add_ps);
        const __mmask16 fired = _mm512_cmp_ps_mask(h, threshold, _CMP_GE_OQ);
        const uint16_t two = (uint16_t)fired;
        memcpy(bits + j / 8, &two, 2);
        _mm512_storeu_ps(v + j, hard ? _mm512_mask_mov_ps(h, fired, v_reset)
                                     : _mm512_mask_sub_ps(h, fired, h, threshold));
    }
    return j;
}

__attribute__((target("avx2"), always_inline)) static inline int64_t
pack_row_256(int mode, int hard, const float *y, affine_t a, float *v, uint8_t *bits, int64_t n,
             const neuron_t *q) {
    CONSTANTS(__m256, _mm256_set1_ps);
    int64_t j = 0;
    for (; j + 8 <= n; j += 8) {
        INPUT(__m256, _mm256_loadu_ps, _mm256_mul_ps, _mm256_add_ps);
        const __m256 fired = _mm256_cmp_ps(h, threshold, _CMP_GE_OQ);
        bits[j / 8] = (uint8_t)_mm256_movemask_ps(fired);
        const __m256 after = hard ? v_reset : _mm256_sub_ps(h, threshold);
        _mm256_storeu_ps(v + j, _mm256_blendv_ps(h, after, fired));
    }
    return j;
}

#define PACK_STEP(name, isa, row)                                                                  \
    __attribute__((target(isa))) static int64_t name(int mode, int hard, const float *y,           \
                                                     affine_t a, float *v, uint8_t *bits,          \
                                                     int64_t n, const neuron_t *q) {               \
        switch (mode * 2 + hard) {                                                                 \
        case 0: return row(PLAIN, 0, y, a, v, bits, n, q);                                         \
        case 1: return row(PLAIN, 1, y, a, v, bits, n, q);                                         \
        case 2: return row(BY_ONE, 0, y, a, v, bits, n, q);                                        \
        case 3: return row(BY_ONE, 1, y, a, v, bits, n, q);                                        \
        case 4: return row(BY_EACH, 0, y, a, v, bits, n, q);                                       \
        default: return row(BY_EACH, 1, y, a, v, bits, n, q);                                      \
        }                                                                                          \
    }

PACK_STEP(pack_step_512, "avx512f", pack_row_512)
PACK_STEP(pack_step_256, "avx2", pack_row_256)

INLINE pack_step_t *pack_step_here(void) {
    const int vector_bits = vector_bits_here();
    if (vector_bits == 512) return pack_step_512;
    if (vector_bits == 256) return pack_step_256;
    return pack_step_none;
}
#else
INLINE pack_step_t *pack_step_here(void) { return pack_step_none; }
#endif

#endif
