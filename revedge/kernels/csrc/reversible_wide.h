/* Two groups of the reversible neuron, 64 neurons at a time, with AVX-512.
 *
 * One neuron's step is a long chain of dependent operations, and a compiler's vector loop writes
 * the chains one after another: the processor's queues fill with operations that wait. Here each
 * operation is written for four vectors in turn, so that four chains are always under way. Whole
 * blocks of 64 only; what is left over goes the portable way. The operations and their order are
 * those of reversible_rows.h, so the bits are.
 */
#ifndef REVEDGE_REVERSIBLE_WIDE_H
#define REVEDGE_REVERSIBLE_WIDE_H

#include "reversible_block.h"

enum { WIDE = 64 };

#ifdef HAS_INTRINSICS
#define TARGET __attribute__((target("avx512f")))
#define TARGET_INLINE __attribute__((target("avx512f"), always_inline)) static inline
#define EACH _Pragma("GCC unroll 4") for (int k = 0; k < 4; ++k)
#define LOAD(p) _mm512_loadu_ps((p) + 16 * k)
#define STORE(p, value) _mm512_storeu_ps((p) + 16 * k, value)

/* passed_of */
TARGET_INLINE __m512 passed_wide(int by_product, __m512 y, __m512 m, const reversible_t *q) {
    const __mmask16 fired = _mm512_cmp_ps_mask(m, _mm512_set1_ps(q->v_threshold), _CMP_GE_OQ);
    const __m512 rest = _mm512_mask_sub_ps(y, fired, y, _mm512_set1_ps(1.0f));
    return by_product ? rest * _mm512_set1_ps(q->inverse_beta) : rest / _mm512_set1_ps(q->beta);
}

/* rebuild_pair */
TARGET_INLINE void rebuild_64(int keep_m, int keep_x, int by_product, const float *y1,
                              const float *y2, float *x1, float *x2, float *v1, float *v2,
                              float *m1, float *m2, const reversible_t *q) {
    const __m512 a = _mm512_set1_ps(q->a), alpha = _mm512_set1_ps(q->alpha);
    const __m512 v_reset = _mm512_set1_ps(q->v_reset), one = _mm512_set1_ps(1.0f);
    __m512 y_1[4], y_2[4], v_1[4], v_2[4], last[4], first[4], x[4], kept[4];
    EACH y_1[k] = LOAD(y1);
    EACH v_2[k] = LOAD(v2);
    EACH y_2[k] = LOAD(y2);
    EACH v_1[k] = LOAD(v1);
    EACH last[k] = y_1[k] - v_2[k];
    EACH last[k] = last[k] * a;
    EACH last[k] = v_2[k] + last[k];
    if (keep_m) EACH STORE(m2, last[k]);
    EACH x[k] = passed_wide(by_product, y_2[k], last[k], q);
    if (keep_x) EACH STORE(x1, x[k]);
    EACH first[k] = x[k] - v_1[k];
    EACH v_2[k] = v_2[k] * alpha;
    EACH first[k] = first[k] * a;
    EACH kept[k] = one - y_2[k];
    EACH first[k] = v_1[k] + first[k];
    if (keep_m) EACH STORE(m1, first[k]);
    if (keep_x) EACH STORE(x2, passed_wide(by_product, y_1[k], first[k], q));
    EACH last[k] = kept[k] * last[k] + y_2[k] * v_reset;
    EACH STORE(v2, last[k] + v_2[k]);
    EACH kept[k] = one - y_1[k];
    EACH v_1[k] = v_1[k] * alpha;
    EACH first[k] = kept[k] * first[k] + y_1[k] * v_reset;
    EACH STORE(v1, first[k] + v_1[k]);
}

/* Surrogate derivatives; atan, the usual one, in turn as all else. */
TARGET_INLINE void slopes_64(int is_atan, const float *m, __m512 *h, const reversible_t *q) {
    if (is_atan) {
        const __m512 threshold = _mm512_set1_ps(q->v_threshold), one = _mm512_set1_ps(1.0f);
        const __m512 slope = _mm512_set1_ps(q->surrogate.slope);
        const __m512 height = _mm512_set1_ps(q->surrogate.height);
        EACH h[k] = LOAD(m) - threshold;
        EACH h[k] = h[k] * slope;
        EACH h[k] = h[k] * h[k];
        EACH h[k] = h[k] + one;
        EACH h[k] = one / h[k];
        EACH h[k] = h[k] * height;
    } else {
        float row[WIDE];
        if (q->kind == SIGMOID)
            for (int j = 0; j < WIDE; ++j)
                row[j] = surrogate_at(SIGMOID, m[j] - q->v_threshold, q->surrogate);
        else if (q->kind == RECTANGLE)
            for (int j = 0; j < WIDE; ++j)
                row[j] = surrogate_at(RECTANGLE, m[j] - q->v_threshold, q->surrogate);
        else
            for (int j = 0; j < WIDE; ++j)
                row[j] = surrogate_at(TRIANGLE, m[j] - q->v_threshold, q->surrogate);
        EACH h[k] = LOAD(row);
    }
}

/* back_pair, and x if wanted */
TARGET_INLINE void back_64(int is_atan, int detach, int keep_x, int by_product, const float *m1,
                           const float *m2, const float *y1, const float *y2, const float *g1,
                           const float *g2, float *out1, float *out2, float *x1, float *x2,
                           float *g_v1, float *g_v2, const reversible_t *q) {
    const __m512 a = _mm512_set1_ps(q->a), one_minus_a = _mm512_set1_ps(q->one_minus_a);
    const __m512 alpha = _mm512_set1_ps(q->alpha), beta = _mm512_set1_ps(q->beta);
    const __m512 v_reset = _mm512_set1_ps(q->v_reset), one = _mm512_set1_ps(1.0f);
    __m512 h1[4], h2[4], gy1[4], gy2[4], gv1[4], gv2[4], kept1[4], kept2[4];
    slopes_64(is_atan, m2, h2, q);
    slopes_64(is_atan, m1, h1, q);
    EACH gv2[k] = LOAD(g_v2);
    EACH gv1[k] = LOAD(g_v1);
    EACH gy2[k] = LOAD(g2);
    EACH gy1[k] = LOAD(g1);
    if (!detach) {
        EACH kept2[k] = v_reset - LOAD(m2);
        EACH kept1[k] = v_reset - LOAD(m1);
        EACH kept2[k] = gv2[k] * kept2[k];
        EACH kept1[k] = gv1[k] * kept1[k];
        EACH gy2[k] = gy2[k] + kept2[k];
        EACH gy1[k] = gy1[k] + kept1[k];
    }
    EACH kept2[k] = one - LOAD(y2);
    EACH kept1[k] = one - LOAD(y1);
    EACH kept2[k] = gv2[k] * kept2[k];
    EACH kept1[k] = gv1[k] * kept1[k];
    EACH h2[k] = gy2[k] * h2[k];
    EACH gv2[k] = gv2[k] * alpha;
    EACH gv1[k] = gv1[k] * alpha;
    EACH gy2[k] = gy2[k] * beta;
    EACH h2[k] = h2[k] + kept2[k]; /* now dL/dM */
    EACH gy1[k] = gy1[k] + h2[k] * a;
    EACH STORE(g_v2, gv2[k] + h2[k] * one_minus_a);
    EACH h1[k] = gy1[k] * h1[k];
    EACH STORE(out2, gy1[k] * beta);
    EACH h1[k] = h1[k] + kept1[k];
    EACH STORE(out1, h1[k] * a + gy2[k]);
    EACH STORE(g_v1, gv1[k] + h1[k] * one_minus_a);
    if (keep_x) EACH STORE(x1, passed_wide(by_product, LOAD(y2), LOAD(m2), q));
    if (keep_x) EACH STORE(x2, passed_wide(by_product, LOAD(y1), LOAD(m1), q));
}

/* rebuild_block over `all` neurons, a multiple of WIDE */
TARGET static void rebuild_wide(const block_t *b, float *m, scratch_t own, int64_t all,
                                const reversible_t *constants) {
    const int64_t L = b->L, S = own.stride;
    const reversible_t c = *constants, *q = &c; /* which no store can change */
    memset(own.v, 0, (size_t)(2 * S) * sizeof(float));
    for (int64_t t = 0; t < b->T; ++t) {
        const float *y = b->y + t * b->row;
        float *x = b->x ? b->x + t * b->row : own.spare, *m_t = m ? m + t * 2 * S : own.spare;
        for (int64_t from = 0; from < all; from += PIECE) {
            const int64_t to = smaller(from + PIECE, all);
            fetch_for_rebuild(b, t, m != NULL, from, to - from);
#define REBUILD(...)                                                                               \
    for (int64_t i = from; i < to; i += WIDE)                                                      \
    rebuild_64(__VA_ARGS__, y + i, y + L + i, x + i, x + L + i, own.v + i, own.v + S + i, m_t + i, \
               m_t + S + i, q)
            switch ((b->x ? (m ? 2 : 1) : 0) * 2 + q->by_product) {
            case 0: REBUILD(1, 0, 0); break;
            case 1: REBUILD(1, 0, 1); break;
            case 2: REBUILD(0, 1, 0); break;
            case 3: REBUILD(0, 1, 1); break;
            case 4: REBUILD(1, 1, 0); break;
            default: REBUILD(1, 1, 1); break;
            }
#undef REBUILD
        }
    }
}

/* back_block over `all` neurons, a multiple of WIDE; x is rebuilt if it was not before */
TARGET static void back_wide(const block_t *b, membranes_t kept, scratch_t own, int x_is_there,
                             int64_t all, const reversible_t *constants) {
    const int64_t L = b->L, S = own.stride, m_L = kept.L;
    const reversible_t c = *constants, *q = &c; /* which no store can change */
    const int keep_x = b->x && !x_is_there;
    float *g_v = own.v;
    memset(g_v, 0, (size_t)(2 * S) * sizeof(float));
    for (int64_t t = b->T - 1; t >= 0; --t) {
        const int64_t at = t * b->row;
        const float *y = b->y + at, *g = b->g + at, *m = kept.m + t * kept.row;
        float *g_x = b->g_x + at, *x = keep_x ? b->x + at : own.spare;
        for (int64_t from = 0; from < all; from += PIECE) {
            const int64_t to = smaller(from + PIECE, all);
            fetch_for_back(b, t, from, to - from);
#define BACK(...)                                                                                  \
    for (int64_t i = from; i < to; i += WIDE)                                                      \
    back_64(__VA_ARGS__, m + i, m + m_L + i, y + i, y + L + i, g + i, g + L + i, g_x + i,          \
            g_x + L + i, x + i, x + L + i, g_v + i, g_v + S + i, q)
#define BACK_BY_KIND(...)                                                                          \
    if (q->kind == ATAN)                                                                           \
        BACK(1, __VA_ARGS__);                                                                      \
    else                                                                                           \
        BACK(0, __VA_ARGS__)
            switch ((keep_x ? 1 + q->by_product : 0) * 2 + q->detach) {
            case 0: BACK_BY_KIND(0, 0, 0); break;
            case 1: BACK_BY_KIND(1, 0, 0); break;
            case 2: BACK_BY_KIND(0, 1, 0); break;
            case 3: BACK_BY_KIND(1, 1, 0); break;
            case 4: BACK_BY_KIND(0, 1, 1); break;
            default: BACK_BY_KIND(1, 1, 1); break;
            }
#undef BACK_BY_KIND
#undef BACK
        }
    }
}

/* How many of n neurons can be done so. */
INLINE int64_t widely(int64_t G, int64_t n) {
    return G == 2 && vector_bits_here() == 512 ? n / WIDE * WIDE : 0;
}
#else
static void rebuild_wide(const block_t *b, float *m, scratch_t own, int64_t n,
                         const reversible_t *q) {
    (void)b, (void)m, (void)own, (void)n, (void)q;
}

static void back_wide(const block_t *b, membranes_t kept, scratch_t own, int x_is_there, int64_t n,
                      const reversible_t *q) {
    (void)b, (void)kept, (void)own, (void)x_is_there, (void)n, (void)q;
}

INLINE int64_t widely(int64_t G, int64_t n) {
    (void)G, (void)n;
    return 0;
}
#endif

#endif
