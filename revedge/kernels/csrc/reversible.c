/* The reversible neuron over a whole sequence.
 *
 * x, y, m, g: [T, P, G, L] with the G groups; v: [P, G, L]. Neuron l of sample p is one chain of G
 * coupled membranes; chains do not meet, so a block of them is one task.
 */
#include "reversible_wide.h"

CLONES static void forward_block(const float *x, float *y, float *v, float *m, int64_t T,
                                 int64_t row, int64_t G, int64_t L, int64_t n,
                                 const reversible_t *q) {
    for (int64_t k = 0; k < G; ++k) memset(v + k * L, 0, (size_t)n * sizeof(float));
    for (int64_t t = 0; t < T; ++t, x += row, y += row) {
        for (int64_t k = 0; k < G; ++k) {
            const float *drive = k < G - 1 ? x + k * L : y + (G - 2) * L;
            const float *passed = x + (k + 1) % G * L;
            if (t + 1 < T) fetch_row(x + row + k * L, n);
            if (m)
                forward_row(1, drive, passed, y + k * L, v + k * L, m + t * row + k * L, n, q);
            else
                forward_row(0, drive, passed, y + k * L, v + k * L, NULL, n, q);
        }
    }
}

/* Columns from i on, n of them, of one step: y to m, or to x, which is NULL if not wanted. */
INLINE void rebuild_step(int keep_m, int by_product, const block_t *b, const float *y, float *x,
                         float *m, scratch_t own, int64_t i, int64_t n, const reversible_t *q) {
    const int64_t G = b->G, L = b->L, S = own.stride;
    float *v = own.v + i;
    y += i;
    if (G == 2 && keep_m) {
        rebuild_pair(1, 0, by_product, y, y + L, NULL, NULL, v, v + S, m + i, m + S + i, n, q);
    } else if (G == 2) {
        rebuild_pair(0, 1, by_product, y, y + L, x + i, x + L + i, v, v + S, NULL, NULL, n, q);
    } else {
        const float *drive = y + (G - 2) * L;
        for (int64_t j = 0; j < G; ++j) { /* the last group first, then 0, 1, ... */
            const int64_t k = j == 0 ? G - 1 : j - 1;
            float *passed = x ? x + (k + 1) % G * L + i : own.spare;
            rebuild_row(keep_m, by_product, drive, y + k * L, passed, v + k * S,
                        keep_m ? m + k * S + i : NULL, n, q);
            drive = passed;
        }
    }
}

/* From y alone, either m [T, G, stride] or, where that is NULL, b->x. */
CLONES static void rebuild_block(const block_t *b, float *m, scratch_t own,
                                 const reversible_t *q) {
    const int64_t T = b->T, row = b->row;
    memset(own.v, 0, (size_t)(b->G * own.stride) * sizeof(float));
    for (int64_t t = 0; t < T; ++t) {
        const float *y = b->y + t * row;
        float *x = m ? NULL : b->x + t * row, *m_t = m ? m + t * b->G * own.stride : NULL;
        for (int64_t i = 0; i < b->n; i += PIECE) {
            const int64_t n = smaller(PIECE, b->n - i);
            fetch_for_rebuild(b, t, m != NULL, i, n);
            switch ((m ? 2 : 0) + q->by_product) {
            case 0: rebuild_step(0, 0, b, y, x, m_t, own, i, n, q); break;
            case 1: rebuild_step(0, 1, b, y, x, m_t, own, i, n, q); break;
            case 2: rebuild_step(1, 0, b, y, x, m_t, own, i, n, q); break;
            default: rebuild_step(1, 1, b, y, x, m_t, own, i, n, q); break;
            }
        }
    }
}

#define BY_KIND(row, ...)                                                                          \
    switch (q->kind * 2 + q->detach) {                                                             \
    case ATAN * 2: row(ATAN, 0, __VA_ARGS__); break;                                               \
    case ATAN * 2 + 1: row(ATAN, 1, __VA_ARGS__); break;                                           \
    case SIGMOID * 2: row(SIGMOID, 0, __VA_ARGS__); break;                                         \
    case SIGMOID * 2 + 1: row(SIGMOID, 1, __VA_ARGS__); break;                                     \
    case RECTANGLE * 2: row(RECTANGLE, 0, __VA_ARGS__); break;                                     \
    case RECTANGLE * 2 + 1: row(RECTANGLE, 1, __VA_ARGS__); break;                                 \
    case TRIANGLE * 2: row(TRIANGLE, 0, __VA_ARGS__); break;                                       \
    case TRIANGLE * 2 + 1: row(TRIANGLE, 1, __VA_ARGS__); break;                                   \
    default: break;                                                                                \
    }

CLONES static void back_two(const float *m, int64_t m_L, const float *y, const float *g,
                            float *g_x, int64_t L, float *g_v, int64_t S, int64_t n,
                            const reversible_t *q) {
    BY_KIND(back_pair, m, m + m_L, y, y + L, g, g + L, g_x, g_x + L, g_v, g_v + S, n, q)
}

CLONES static void back_any(int coupled, const float *m, const float *y, float *g, float *g_v,
                            const float *last, float *g_m, int64_t n, const reversible_t *q) {
    if (coupled)
        BY_KIND(back_row, 1, m, y, g, g_v, last, g_m, n, q)
    else
        BY_KIND(back_row, 0, m, y, g, g_v, last, g_m, n, q)
}

CLONES static void passed_any(const float *y, const float *m, float *x, int64_t n,
                              const reversible_t *q) {
    if (q->by_product)
        passed_row(1, y, m, x, n, q);
    else
        passed_row(0, y, m, x, n, q);
}

/* GY of every group in g, GM in g_m [G, S], to dL/dX in g. */
CLONES static void input_gradient(float *g, const float *g_m, float *restrict spare, int64_t G,
                                  int64_t L, int64_t n, int64_t S, const reversible_t *q) {
    const float a = q->a, beta = q->beta;
    memcpy(spare, g + (G - 1) * L, (size_t)n * sizeof(float)); /* GY of the last group */
    for (int64_t k = G - 1; k > 0; --k) {
        const float *through = g + (k - 1) * L;
        float *to = g + k * L;
        if (k == G - 1)
            for (int64_t j = 0; j < n; ++j) to[j] = through[j] * beta;
        else
            for (int64_t j = 0; j < n; ++j) to[j] = g_m[k * S + j] * a + through[j] * beta;
    }
    for (int64_t j = 0; j < n; ++j) g[j] = g_m[j] * a + spare[j] * beta;
}

/* All steps back over one block. */
static void back_block(const block_t *b, membranes_t kept, scratch_t own, const reversible_t *q) {
    const int64_t G = b->G, L = b->L, S = own.stride;
    memset(own.v, 0, (size_t)(G * S) * sizeof(float));
    for (int64_t t = b->T - 1; t >= 0; --t) {
        const int64_t at = t * b->row;
        for (int64_t i = 0; i < b->n; i += PIECE) {
            const int64_t n = smaller(PIECE, b->n - i);
            const float *y = b->y + at + i, *g = b->g + at + i, *m = kept.m + t * kept.row + i;
            float *g_x = b->g_x + at + i, *g_v = own.v + i, *g_m = own.g_m;
            fetch_for_back(b, t, i, n);
            if (G == 2) {
                back_two(m, kept.L, y, g, g_x, L, g_v, S, n, q);
            } else {
                for (int64_t k = G - 1; k >= 0; --k) {
                    if (g != g_x) memcpy(g_x + k * L, g + k * L, (size_t)n * sizeof(float));
                    back_any(k == G - 2, m + k * kept.L, y + k * L, g_x + k * L, g_v + k * S,
                             g_m + (G - 1) * S, g_m + k * S, n, q);
                }
                input_gradient(g_x, g_m, own.spare, G, L, n, S, q);
            }
            for (int64_t k = 0; k < G && b->x; ++k)
                passed_any(y + k * L, m + k * kept.L, b->x + at + i + (k + 1) % G * L, n, q);
        }
    }
}

/* m [T, G, stride] of a whole block, or where that is NULL b->x alone. */
static void rebuild(const block_t *b, float *m, scratch_t own, const reversible_t *q) {
    const int64_t done = widely(b->G, b->n);
    const block_t rest = behind(*b, done);
    if (done) rebuild_wide(b, m, own, done, q);
    if (done < b->n) rebuild_block(&rest, m ? m + done : NULL, own, q);
}

/* The way back of a whole block; `again`: rebuild has made the membranes. */
static void back(const block_t *b, membranes_t kept, int again, scratch_t own,
                 const reversible_t *q) {
    const int64_t done = widely(b->G, b->n);
    const block_t rest = behind(*b, done);
    if (done) back_wide(b, kept, own, again, done, q);
    kept.m += done;
    if (done < b->n) back_block(&rest, kept, own, q);
}

enum { FORWARD, RECONSTRUCT, BACKWARD };

/* What the three have in common. On the way back, m NULL makes the membranes again from y. */
static int run(int what, block_t all, const float *x, float *y, float *v, float *m, int64_t P,
               const float *p, int threads) {
    const reversible_t q = reversible_of(p);
    const int64_t T = all.T, G = all.G, L = all.L, row = P * G * L;
    const int again = what == BACKWARD && !m;
    const int64_t most = smaller(block_for(T * G), again ? SHORT_ROW : LONG_ROW);
    const int64_t size = smaller(most, (L + 15) / 16 * 16);
    const int64_t pieces = size ? (L + size - 1) / size : 0, tasks = P * pieces;
    /* rows that lie 4096 bytes apart get into each other's way */
    const int64_t stride = size > SHORT_ROW ? size + 16 : size;
    const int64_t membranes = again ? T * G * stride : 0;
    const int64_t scratch = membranes + (2 * G + 1) * stride;
    threads = threads_for(T * row, tasks, threads);
    void *memory = malloc((size_t)threads * (size_t)scratch * sizeof(float) + 64);
    if (!memory) return OUT_OF_MEMORY;
    float *lines = (float *)(((uintptr_t)memory + 63) & ~(uintptr_t)63); /* a vector is a line */
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (int64_t task = 0; task < tasks; ++task) {
        const int64_t from = task % pieces * size, at = task / pieces * G * L + from;
        float *space = lines + thread_index() * scratch, *rest = space + membranes;
        const scratch_t own = {rest, rest + G * stride, rest + 2 * G * stride, stride};
        block_t b = all;
        b.row = row, b.n = smaller(size, L - from);
        b.fetch = !m && T * row > FAR_AWAY; /* stored ones come in rows that need none */
        if (what == FORWARD) {
            forward_block(x + at, y + at, v + at, m ? m + at : NULL, T, row, G, L, b.n, &q);
            continue;
        }
        b.y += at, b.x = all.x ? all.x + at : NULL;
        if (what == RECONSTRUCT) {
            rebuild(&b, NULL, own, &q);
            continue;
        }
        b.g += at, b.g_x += at;
        if (task + 1 < tasks) {
            const int64_t next = (task + 1) % pieces * size;
            b.ahead_y = all.y + (task + 1) / pieces * G * L + next;
            b.n_ahead = smaller(size, L - next);
        }
        membranes_t kept = {space, G * stride, stride};
        if (m)
            kept = (membranes_t){m + at, row, L};
        else
            rebuild(&b, space, own, &q);
        back(&b, kept, again, own, &q);
    }
    free(memory);
    return 0;
}

REVEDGE_API int revedge_reversible_forward(const float *x, float *y, float *v, float *m, int64_t T,
                                           int64_t P, int64_t G, int64_t L, const float *p,
                                           int threads) {
    const block_t b = {T, G, 0, L, 0, NULL, NULL, NULL, NULL, NULL, 0, 0};
    return run(FORWARD, b, x, y, v, m, P, p, threads);
}

REVEDGE_API int revedge_reversible_reconstruct(const float *y, float *x, int64_t T, int64_t P,
                                               int64_t G, int64_t L, const float *p, int threads) {
    const block_t b = {T, G, 0, L, 0, y, NULL, NULL, x, y, 0, 0};
    return run(RECONSTRUCT, b, NULL, NULL, NULL, NULL, P, p, threads);
}

/* m: as forward wrote it, or NULL; x: to be rebuilt, or NULL; g_x may be g. */
REVEDGE_API int revedge_reversible_backward(const float *y, float *m, const float *g, float *g_x,
                                            float *x, int64_t T, int64_t P, int64_t G, int64_t L,
                                            const float *p, int threads) {
    const block_t b = {T, G, 0, L, 0, y, g, g_x, x, y, 0, 0};
    return run(BACKWARD, b, NULL, NULL, NULL, m, P, p, threads);
}
