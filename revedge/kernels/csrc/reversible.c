/* The reversible neuron; see reference/reversible.py, which this repeats operation by operation.
 *
 * x, y, g: [T, P, G, L] with the G groups; v: [P, G, L]. Neuron l of sample p is one chain of G
 * coupled membranes; chains do not meet, so a block of them is one task.
 */
#include "surrogates.h"

typedef struct {
    float a, one_minus_a, alpha, beta, v_threshold, v_reset;
    int detach, kind;
    surrogate_t surrogate;
} reversible_t;

INLINE reversible_t reversible_of(const float *p) {
    reversible_t q;
    q.a = p[0];
    q.one_minus_a = p[1];
    q.alpha = p[2];
    q.beta = p[3];
    q.v_threshold = p[4];
    q.v_reset = p[5];
    q.detach = p[6] != 0.0f;
    q.kind = (int)p[7];
    q.surrogate = surrogate_of(p[8]);
    return q;
}

INLINE float next_state(float v, float m, float y, const reversible_t *q) {
    return ((1.0f - y) * m + y * q->v_reset) + v * q->alpha;
}

/* Equations 1-6 for one group and step. `drive` may be the group's own x or another group's y. */
INLINE void forward_row(const float *drive, const float *passed, float *y, float *restrict v,
                        int64_t n, const reversible_t *q) {
    const reversible_t c = *q;
    for (int64_t j = 0; j < n; ++j) {
        const float m = v[j] + (drive[j] - v[j]) * c.a;
        const float out = (m >= c.v_threshold ? 1.0f : 0.0f) + passed[j] * c.beta;
        y[j] = out;
        v[j] = next_state(v[j], m, out, &c);
    }
}

/* The same with y known and `passed` to be found. m kept if given. */
INLINE void rebuild_row(int keep_m, const float *drive, const float *y, float *passed,
                        float *restrict v, float *restrict m_out, int64_t n,
                        const reversible_t *q) {
    const reversible_t c = *q;
    for (int64_t j = 0; j < n; ++j) {
        const float m = v[j] + (drive[j] - v[j]) * c.a;
        passed[j] = (y[j] - (m >= c.v_threshold ? 1.0f : 0.0f)) / c.beta;
        v[j] = next_state(v[j], m, y[j], &c);
        if (keep_m) m_out[j] = m;
    }
}

CLONES static void forward_block(const float *x, float *y, float *v, int64_t T, int64_t row,
                                 int64_t G, int64_t L, int64_t n, const reversible_t *q) {
    for (int64_t k = 0; k < G; ++k) memset(v + k * L, 0, (size_t)n * sizeof(float));
    for (int64_t t = 0; t < T; ++t, x += row, y += row)
        for (int64_t k = 0; k < G; ++k)
            forward_row(k < G - 1 ? x + k * L : y + (G - 2) * L, x + (k + 1) % G * L, y + k * L,
                        v + k * L, n, q);
}

/* scratch: v [G, size], then m [T, G, size] if kept. */
CLONES static void rebuild_block(const float *y, float *x, float *scratch, int keep_m, int64_t T,
                                 int64_t row, int64_t G, int64_t L, int64_t n, int64_t size,
                                 const reversible_t *q) {
    float *v = scratch, *m = scratch + G * size;
    memset(v, 0, (size_t)(G * size) * sizeof(float));
    for (int64_t t = 0; t < T; ++t, x += row, y += row) {
        const float *drive = y + (G - 2) * L;
        for (int64_t i = 0; i < G; ++i) { /* the last group first, then 0, 1, ... */
            const int64_t k = i == 0 ? G - 1 : i - 1;
            float *passed = x + (k + 1) % G * L;
            if (keep_m)
                rebuild_row(1, drive, y + k * L, passed, v + k * size, m + (t * G + k) * size, n,
                            q);
            else
                rebuild_row(0, drive, y + k * L, passed, v + k * size, NULL, n, q);
            drive = passed;
        }
    }
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

#define BACK_CASES(kind)                                                                           \
    case kind * 4 + 0: back_row(kind, 0, 0, m, y, g, g_v, last, g_m, n, q); break;                 \
    case kind * 4 + 1: back_row(kind, 0, 1, m, y, g, g_v, last, g_m, n, q); break;                 \
    case kind * 4 + 2: back_row(kind, 1, 0, m, y, g, g_v, last, g_m, n, q); break;                 \
    case kind * 4 + 3: back_row(kind, 1, 1, m, y, g, g_v, last, g_m, n, q); break

CLONES static void back_any(int coupled, const float *m, const float *y, float *g, float *g_v,
                            const float *last, float *g_m, int64_t n, const reversible_t *q) {
    switch (q->kind * 4 + q->detach * 2 + coupled) {
        BACK_CASES(ATAN);
        BACK_CASES(SIGMOID);
        BACK_CASES(RECTANGLE);
        BACK_CASES(TRIANGLE);
    default: break;
    }
}

/* GY of every group in g, GM in g_m [G, size], to dL/dX in g. */
CLONES static void input_gradient(float *g, const float *g_m, float *restrict spare, int64_t G,
                                  int64_t L, int64_t n, int64_t size, const reversible_t *q) {
    const float a = q->a, beta = q->beta;
    memcpy(spare, g + (G - 1) * L, (size_t)n * sizeof(float)); /* GY of the last group */
    for (int64_t k = G - 1; k > 0; --k) {
        const float *through = g + (k - 1) * L;
        float *to = g + k * L;
        if (k == G - 1)
            for (int64_t j = 0; j < n; ++j) to[j] = through[j] * beta;
        else
            for (int64_t j = 0; j < n; ++j) to[j] = g_m[k * size + j] * a + through[j] * beta;
    }
    for (int64_t j = 0; j < n; ++j) g[j] = g_m[j] * a + spare[j] * beta;
}

static void backward_block(const float *y, float *g, float *x, float *scratch, int64_t T,
                           int64_t row, int64_t G, int64_t L, int64_t n, int64_t size,
                           const reversible_t *q) {
    float *m = scratch + G * size, *g_m = m + T * G * size, *spare = g_m + G * size;
    float *g_v = scratch; /* V is not needed any more when the way back starts */
    rebuild_block(y, x, scratch, 1, T, row, G, L, n, size, q);
    memset(g_v, 0, (size_t)(G * size) * sizeof(float));
    for (int64_t t = T - 1; t >= 0; --t) {
        for (int64_t k = G - 1; k >= 0; --k) {
            const int64_t at = t * row + k * L;
            back_any(k == G - 2, m + (t * G + k) * size, y + at, g + at, g_v + k * size,
                     g_m + (G - 1) * size, g_m + k * size, n, q);
        }
        input_gradient(g + t * row, g_m, spare, G, L, n, size, q);
    }
}

enum { FORWARD, RECONSTRUCT, BACKWARD };

/* in: x or y; out: y or x; more: v (forward) or g (backward). */
static int run(int what, const float *in, float *out, float *more, int64_t T, int64_t P, int64_t G,
               int64_t L, const float *p, int threads) {
    const reversible_t q = reversible_of(p);
    const int64_t size = smaller(block_for(T * G), (L + 15) / 16 * 16);
    const int64_t pieces = size ? (L + size - 1) / size : 0, row = P * G * L;
    const int64_t rows = what == FORWARD ? 1 : what == RECONSTRUCT ? G : (T + 2) * G + 1;
    const int64_t scratch = rows * size;
    threads = threads_for(T * row, P * pieces, threads);
    float *all = malloc((size_t)threads * (size_t)(scratch + 1) * sizeof(float));
    if (!all) return OUT_OF_MEMORY;
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (int64_t task = 0; task < P * pieces; ++task) {
        const int64_t from = task % pieces * size, n = smaller(size, L - from);
        const int64_t at = task / pieces * G * L + from;
        float *own = all + thread_index() * scratch;
        if (what == FORWARD)
            forward_block(in + at, out + at, more + at, T, row, G, L, n, &q);
        else if (what == RECONSTRUCT)
            rebuild_block(in + at, out + at, own, 0, T, row, G, L, n, size, &q);
        else
            backward_block(in + at, more + at, out + at, own, T, row, G, L, n, size, &q);
    }
    free(all);
    return 0;
}

REVEDGE_API int revedge_reversible_forward(const float *x, float *y, float *v, int64_t T, int64_t P,
                                           int64_t G, int64_t L, const float *p, int threads) {
    return run(FORWARD, x, y, v, T, P, G, L, p, threads);
}

REVEDGE_API int revedge_reversible_reconstruct(const float *y, float *x, int64_t T, int64_t P,
                                               int64_t G, int64_t L, const float *p, int threads) {
    return run(RECONSTRUCT, y, x, NULL, T, P, G, L, p, threads);
}

REVEDGE_API int revedge_reversible_backward(const float *y, float *g, float *x, int64_t T,
                                            int64_t P, int64_t G, int64_t L, const float *p,
                                            int threads) {
    return run(BACKWARD, y, x, g, T, P, G, L, p, threads);
}
