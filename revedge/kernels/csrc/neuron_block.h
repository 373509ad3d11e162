/* Integrate-and-fire on one block of neurons: T rows of `n` neurons, `stride` elements apart.
 *
 * The input may be scaled on the way in, x = y * scale + shift (batch norm), by one number for the
 * block or by one per neuron. All flags are constants at the innermost calls.
 */
#ifndef REVEDGE_NEURON_BLOCK_H
#define REVEDGE_NEURON_BLOCK_H

#include "surrogates.h"

typedef struct {
    float decay, gain, bias, v_threshold, v_reset;
    int hard, detach, kind;
    float leak_x, leak_v, leak_1;
    int learns;
    surrogate_t surrogate;
} neuron_t;

/* The order is that of NeuronParams.as_floats. */
INLINE neuron_t neuron_of(const float *p) {
    neuron_t q;
    q.decay = p[0];
    q.gain = p[1];
    q.bias = p[2];
    q.v_threshold = p[3];
    q.v_reset = p[4];
    q.hard = p[5] != 0.0f;
    q.detach = p[6] != 0.0f;
    q.kind = (int)p[7];
    q.surrogate = surrogate_of(p[8]);
    q.leak_x = p[9];
    q.leak_v = p[10];
    q.leak_1 = p[11];
    q.learns = p[9] != 0.0f || p[10] != 0.0f || p[11] != 0.0f;
    return q;
}

/* How the input is scaled on the way in. */
enum { PLAIN = 0, BY_ONE = 1, BY_EACH = 2 };
typedef struct {
    int mode;
    const float *scale, *shift;
} affine_t;

INLINE float input_at(int mode, float y, float scale1, float shift1, const float *scale,
                      const float *shift, int64_t j) {
    if (mode == PLAIN) return y;
    if (mode == BY_ONE) return y * scale1 + shift1;
    return y * scale[j] + shift[j];
}

INLINE float reset_of(int hard, float h, const neuron_t *q) {
    if (hard) return h >= q->v_threshold ? q->v_reset : h;
    return h >= q->v_threshold ? h - q->v_threshold : h;
}

/* What one step writes besides the membrane. */
enum { WANT_H = 1, WANT_FLOATS = 2, WANT_BYTES = 3 };
typedef struct {
    float *h;       /* WANT_H: the membrane before the reset */
    float *floats;  /* WANT_FLOATS: spikes as 0.0 and 1.0 */
    uint8_t *bytes; /* WANT_BYTES: spikes as 0 and 1 */
} written_t;

/* One step: v [n] before and after; one of the arrays of `out` [n] written. */
INLINE void step_row(int mode, int hard, int want, const float *y, affine_t a, float *restrict v,
                     written_t out, int64_t n, const neuron_t *q) {
    float *restrict h_out = out.h, *restrict floats = out.floats;
    uint8_t *restrict bytes = out.bytes;
    const float scale1 = mode == BY_ONE ? a.scale[0] : 1.0f;
    const float shift1 = mode == BY_ONE ? a.shift[0] : 0.0f;
    const float decay = q->decay, gain = q->gain, bias = q->bias, threshold = q->v_threshold;
    const neuron_t local = *q;
    for (int64_t j = 0; j < n; ++j) {
        const float x = input_at(mode, y[j], scale1, shift1, a.scale, a.shift, j);
        const float h = (v[j] * decay + x * gain) + bias;
        if (want == WANT_H) h_out[j] = h;
        if (want == WANT_FLOATS) floats[j] = h >= threshold ? 1.0f : 0.0f;
        if (want == WANT_BYTES) bytes[j] = h >= threshold;
        v[j] = reset_of(hard, h, &local);
    }
}

INLINE void step_any(int want, const float *y, affine_t a, float *v, written_t out, int64_t n,
                     const neuron_t *q) {
    switch (a.mode * 2 + q->hard) {
    case 0: step_row(PLAIN, 0, want, y, a, v, out, n, q); break;
    case 1: step_row(PLAIN, 1, want, y, a, v, out, n, q); break;
    case 2: step_row(BY_ONE, 0, want, y, a, v, out, n, q); break;
    case 3: step_row(BY_ONE, 1, want, y, a, v, out, n, q); break;
    case 4: step_row(BY_EACH, 0, want, y, a, v, out, n, q); break;
    default: step_row(BY_EACH, 1, want, y, a, v, out, n, q); break;
    }
}

/* One step back. h [n]: h in, dL/dh out; g_s: dL/ds in; g_x: dL/dx out, may be g_s itself;
 * g_v: dL/dv[t] in, dL/dv[t-1] out. */
INLINE void back_row(int kind, int hard, int detach, float *restrict h, const float *g_s,
                     float *g_x, float *restrict g_v, int64_t n, const neuron_t *q) {
    const neuron_t c = *q;
    INDEPENDENT
    for (int64_t j = 0; j < n; ++j) {
        const float m = h[j], gv = g_v[j];
        float gs = g_s[j];
        if (!detach) gs = gs + gv * (hard ? c.v_reset - m : -c.v_threshold);
        const float through = hard ? (m >= c.v_threshold ? 0.0f : gv) : gv;
        const float gh = gs * surrogate_at(kind, m - c.v_threshold, c.surrogate) + through;
        h[j] = gh;
        g_x[j] = gh * c.gain;
        g_v[j] = gh * c.decay;
    }
}

#define BACK_CASES(kind)                                                                           \
    case kind * 4 + 0: back_row(kind, 0, 0, h, g_s, g_x, g_v, n, q); break;                               \
    case kind * 4 + 1: back_row(kind, 0, 1, h, g_s, g_x, g_v, n, q); break;                               \
    case kind * 4 + 2: back_row(kind, 1, 0, h, g_s, g_x, g_v, n, q); break;                               \
    case kind * 4 + 3: back_row(kind, 1, 1, h, g_s, g_x, g_v, n, q); break

CLONES static void back_any(float *h, const float *g_s, float *g_x, float *g_v, int64_t n,
                            const neuron_t *q) {
    switch (q->kind * 4 + q->hard * 2 + q->detach) {
        BACK_CASES(ATAN);
        BACK_CASES(SIGMOID);
        BACK_CASES(RECTANGLE);
        BACK_CASES(TRIANGLE);
    default: break;
    }
}

/* g_leak += g_h * dh/dk for one step; v [n] is the membrane before it. */
INLINE void leak_row(int mode, const float *y, affine_t a, const float *v, const float *g_h,
                     float *restrict g_leak, int64_t n, const neuron_t *q) {
    const float scale1 = mode == BY_ONE ? a.scale[0] : 1.0f;
    const float shift1 = mode == BY_ONE ? a.shift[0] : 0.0f;
    for (int64_t j = 0; j < n; ++j) {
        const float x = input_at(mode, y[j], scale1, shift1, a.scale, a.shift, j);
        const float dh = (x * q->leak_x + v[j] * q->leak_v) + q->leak_1;
        g_leak[j] = g_leak[j] + g_h[j] * dh;
    }
}

/* The membrane before the first step: v0 if given. */
INLINE void start_row(const float *v0, float *v, int64_t n, const neuron_t *q) {
    if (v0)
        memcpy(v, v0, (size_t)n * sizeof(float));
    else
        for (int64_t j = 0; j < n; ++j) v[j] = q->v_reset;
}

/* The rows of one block: inputs y and gradients g, and how far apart their time steps lie. */
typedef struct {
    const float *y;
    int64_t y_stride;
    const float *g_s;
    float *g_x; /* may be g_s */
    int64_t g_stride;
    affine_t affine;
} rows_t;

/* Floats that the steps of a block of `size` neurons need: h for every step, and one row. */
INLINE int64_t backward_steps(int64_t T, int64_t size) { return (T + 1) * size; }

/* Floats of scratch that a backward pass needs: the steps, and a row for g_v. */
INLINE int64_t backward_scratch(int64_t T, int64_t size) { return backward_steps(T, size) + size; }

/* All steps over one block; scratch holds h of each from then on. */
CLONES static void forward_steps(rows_t rows, const float *v0, int64_t T, int64_t n, int64_t size,
                                 float *scratch, const neuron_t *q) {
    float *h = scratch, *v = scratch + T * size;
    start_row(v0, v, n, q);
    for (int64_t t = 0; t < T; ++t) {
        if (t + 1 < T) fetch_row(rows.y + (t + 1) * rows.y_stride, n);
        const written_t out = {h + t * size, NULL, NULL};
        step_any(WANT_H, rows.y + t * rows.y_stride, rows.affine, v, out, n, q);
    }
}

/* And back; scratch as forward_steps left it. g_leak [n] is added to if given. */
CLONES static void back_steps(rows_t rows, const float *v0, float *g_v, float *g_leak, int64_t T,
                              int64_t n, int64_t size, float *scratch, const neuron_t *q) {
    float *h = scratch, *v = scratch + T * size;
    for (int64_t t = T - 1; t >= 0; --t) {
        if (t > 0) fetch_row(rows.g_s + (t - 1) * rows.g_stride, n);
        back_any(h + t * size, rows.g_s + t * rows.g_stride, rows.g_x + t * rows.g_stride, g_v, n,
                 q);
        if (!g_leak) continue;
        if (t == 0)
            start_row(v0, v, n, q);
        else
            for (int64_t j = 0; j < n; ++j) v[j] = reset_of(q->hard, h[(t - 1) * size + j], q);
        leak_row(rows.affine.mode, rows.y + t * rows.y_stride, rows.affine, v, h + t * size,
                 g_leak, n, q);
    }
}

/* All steps back over one block. g_v [n]: dL/dv[T-1] in, dL/dv0 out. g_leak [n] added to if given.
 * scratch: see backward_scratch; its last row is left to the caller. */
INLINE void backward_block(rows_t rows, const float *v0, float *g_v, float *g_leak, int64_t T,
                           int64_t n, int64_t size, float *scratch, const neuron_t *q) {
    forward_steps(rows, v0, T, n, size, scratch, q);
    back_steps(rows, v0, g_v, g_leak, T, n, size, scratch, q);
}

#endif
