/* The reversible neuron, one row of neurons of one group and one step at a time; see
 * reference/reversible.py, which this repeats operation by operation. */
#ifndef REVEDGE_REVERSIBLE_ROWS_H
#define REVEDGE_REVERSIBLE_ROWS_H

#include "surrogates.h"

typedef struct {
    float a, one_minus_a, alpha, beta, v_threshold, v_reset;
    int detach, kind;
    surrogate_t surrogate;
    int by_product;     /* dividing by beta is multiplying by inverse_beta, bit for bit */
    float inverse_beta; /* exact where beta is a power of two */
} reversible_t;

INLINE reversible_t reversible_of(const float *p) {
    reversible_t q;
    const union {
        float value;
        uint32_t bits;
    } beta = {p[3]};
    const uint32_t exponent = beta.bits >> 23 & 255;
    q.a = p[0];
    q.one_minus_a = p[1];
    q.alpha = p[2];
    q.beta = p[3];
    q.v_threshold = p[4];
    q.v_reset = p[5];
    q.detach = p[6] != 0.0f;
    q.kind = (int)p[7];
    q.surrogate = surrogate_of(p[8]);
    q.by_product = (beta.bits & 0x7fffff) == 0 && exponent > 2 && exponent < 252;
    q.inverse_beta = 1.0f / q.beta;
    return q;
}

INLINE float membrane(float v, float drive, const reversible_t *q) {
    return v + (drive - v) * q->a;
}

/* 1 or 0, by bits: a choice between sums is a jump to a compiler that must not compute both. */
INLINE float spike_of(float m, const reversible_t *q) {
    union {
        uint32_t bits;
        float value;
    } spike;
    spike.bits = (uint32_t)-(int32_t)(m >= q->v_threshold) & 0x3f800000u;
    return spike.value;
}

INLINE float next_state(float v, float m, float y, const reversible_t *q) {
    return ((1.0f - y) * m + y * q->v_reset) + v * q->alpha;
}

/* The input that went into `y` of a group whose membrane is `m`. */
INLINE float passed_of(int by_product, float y, float m, const reversible_t *q) {
    const float rest = y - spike_of(m, q);
    return by_product ? rest * q->inverse_beta : rest / q->beta;
}

/* Equations 1-6. `drive` may be the group's own x or another group's y. m kept if wanted. */
INLINE void forward_row(int keep_m, const float *drive, const float *passed, float *y,
                        float *restrict v, float *restrict m_out, int64_t n,
                        const reversible_t *q) {
    const reversible_t c = *q;
    for (int64_t j = 0; j < n; ++j) {
        const float m = membrane(v[j], drive[j], &c);
        const float out = spike_of(m, &c) + passed[j] * c.beta;
        y[j] = out;
        v[j] = next_state(v[j], m, out, &c);
        if (keep_m) m_out[j] = m;
    }
}

/* The same with y known and `passed` to be found, which may overwrite `drive`. */
INLINE void rebuild_row(int keep_m, int by_product, const float *drive, const float *restrict y,
                        float *passed, float *restrict v, float *restrict m_out, int64_t n,
                        const reversible_t *q) {
    const reversible_t c = *q;
    INDEPENDENT
    for (int64_t j = 0; j < n; ++j) {
        const float m = membrane(v[j], drive[j], &c);
        passed[j] = passed_of(by_product, y[j], m, &c);
        v[j] = next_state(v[j], m, y[j], &c);
        if (keep_m) m_out[j] = m;
    }
}

/* Two groups at once: y1, y2 to m1, m2 and, if wanted, x1, x2. */
INLINE void rebuild_pair(int keep_m, int keep_x, int by_product, const float *restrict y1,
                         const float *restrict y2, float *restrict x1, float *restrict x2,
                         float *restrict v1, float *restrict v2, float *restrict m1,
                         float *restrict m2, int64_t n, const reversible_t *q) {
    const reversible_t c = *q;
    for (int64_t j = 0; j < n; ++j) {
        const float last = membrane(v2[j], y1[j], &c);
        const float x = passed_of(by_product, y2[j], last, &c);
        const float first = membrane(v1[j], x, &c);
        v2[j] = next_state(v2[j], last, y2[j], &c);
        v1[j] = next_state(v1[j], first, y1[j], &c);
        if (keep_m) m1[j] = first, m2[j] = last;
        if (keep_x) x1[j] = x, x2[j] = passed_of(by_product, y1[j], first, &c);
    }
}

/* x of the group behind, where m is known. */
INLINE void passed_row(int by_product, const float *restrict y, const float *restrict m,
                       float *restrict x, int64_t n, const reversible_t *q) {
    const reversible_t c = *q;
    for (int64_t j = 0; j < n; ++j) x[j] = passed_of(by_product, y[j], m[j], &c);
}

/* One group, one step back. g: dL/dY in, GY out. g_v: dL/dV' in, dL/dV out. g_m: out; `coupled`,
 * for the group whose Y drives the last one, also in: the last group's. */
INLINE void back_row(int kind, int detach, int coupled, const float *restrict m,
                     const float *restrict y, float *restrict g, float *restrict g_v,
                     const float *g_m_last, float *g_m, int64_t n, const reversible_t *q) {
    const reversible_t c = *q;
    for (int64_t j = 0; j < n; ++j) {
        float gy = g[j];
        if (!detach) gy = gy + g_v[j] * (c.v_reset - m[j]);
        if (coupled) gy = gy + g_m_last[j] * c.a;
        const float gm = gy * surrogate_at(kind, m[j] - c.v_threshold, c.surrogate) +
                         g_v[j] * (1.0f - y[j]);
        g[j] = gy;
        g_m[j] = gm;
        g_v[j] = g_v[j] * c.alpha + gm * c.one_minus_a;
    }
}

/* Two groups at once, and on to dL/dX: g1, g2 in, out1, out2 out, which may be the same arrays. */
INLINE void back_pair(int kind, int detach, const float *restrict m1, const float *restrict m2,
                      const float *restrict y1, const float *restrict y2, const float *g1,
                      const float *g2, float *out1, float *out2, float *restrict g_v1,
                      float *restrict g_v2, int64_t n, const reversible_t *q) {
    const reversible_t c = *q;
    INDEPENDENT
    for (int64_t j = 0; j < n; ++j) {
        float gy2 = g2[j], gy1 = g1[j];
        if (!detach) gy2 = gy2 + g_v2[j] * (c.v_reset - m2[j]);
        const float gm2 = gy2 * surrogate_at(kind, m2[j] - c.v_threshold, c.surrogate) +
                          g_v2[j] * (1.0f - y2[j]);
        if (!detach) gy1 = gy1 + g_v1[j] * (c.v_reset - m1[j]);
        gy1 = gy1 + gm2 * c.a;
        const float gm1 = gy1 * surrogate_at(kind, m1[j] - c.v_threshold, c.surrogate) +
                          g_v1[j] * (1.0f - y1[j]);
        g_v2[j] = g_v2[j] * c.alpha + gm2 * c.one_minus_a;
        g_v1[j] = g_v1[j] * c.alpha + gm1 * c.one_minus_a;
        out1[j] = gm1 * c.a + gy2 * c.beta;
        out2[j] = gy1 * c.beta;
    }
}

#endif
