/* The reversible neuron: what the ways over one block of neurons have in common. */
#ifndef REVEDGE_REVERSIBLE_BLOCK_H
#define REVEDGE_REVERSIBLE_BLOCK_H

#include "reversible_rows.h"

/* Arrays of more elements come from memory, and are fetched ahead; where a cache holds them, fetches
 * would only take the place of other loads. */
enum { FAR_AWAY = 1 << 20 };

/* Columns done between two fetches: what is fetched arrives while they are computed. */
enum { PIECE = 128 };

/* Columns of a block. Long rows stream best, but membranes that are made again shall still be in
 * the nearest caches when they are read. */
enum { SHORT_ROW = 512, LONG_ROW = 2048 };

/* One block: rows of n neurons, `row` apart in time and `L` apart between groups. */
typedef struct {
    int64_t T, G, row, L, n;
    const float *y, *g;
    float *g_x;           /* may be g */
    float *x;             /* rebuilt if given */
    const float *ahead_y; /* y of the block that comes next, n_ahead neurons */
    int64_t n_ahead;
    int fetch;
} block_t;

/* The membranes before the spike: the caller's, or made again in scratch. */
typedef struct {
    const float *m;
    int64_t row, L;
} membranes_t;

/* Scratch of one block; rows are `stride` apart. */
typedef struct {
    float *v;     /* [G]: V, and on the way back dL/dV */
    float *g_m;   /* [G]: dL/dM, or the surrogate derivatives */
    float *spare; /* one row */
    int64_t stride;
} scratch_t;

/* Columns `from` to `to` of one row of every group of a step. */
INLINE void fetch_step(const float *step, const block_t *b, int64_t from, int64_t to) {
    for (int64_t k = 0; k < b->G && from < to; ++k) fetch_row(step + k * b->L + from, to - from);
}

/* While step t is rebuilt. y of the way back was fetched block by block, its g comes next, from
 * the last step on; without a way back, y of the next step does. */
INLINE void fetch_for_rebuild(const block_t *b, int64_t t, int on_the_way_back, int64_t from,
                              int64_t n) {
    const float *ahead = on_the_way_back ? b->g + (b->T - 1 - t) * b->row
                         : t + 1 < b->T  ? b->y + (t + 1) * b->row
                                         : b->y;
    if (b->fetch) fetch_step(ahead, b, from, from + n);
}

/* While the way back is at step t: y of the next block, from its first step on. */
INLINE void fetch_for_back(const block_t *b, int64_t t, int64_t from, int64_t n) {
    if (b->fetch)
        fetch_step(b->ahead_y + (b->T - 1 - t) * b->row, b, from, smaller(from + n, b->n_ahead));
}

/* What is left of a block behind its first `done` neurons. */
INLINE block_t behind(block_t b, int64_t done) {
    b.n -= done, b.y += done, b.ahead_y += done, b.n_ahead -= done;
    b.g = b.g ? b.g + done : NULL;
    b.g_x = b.g_x ? b.g_x + done : NULL;
    b.x = b.x ? b.x + done : NULL;
    return b;
}

#endif
