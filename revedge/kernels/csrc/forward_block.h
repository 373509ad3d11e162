/* Integrate-and-fire forward on one block of neurons, spikes as floats or as bits. */
#ifndef REVEDGE_FORWARD_BLOCK_H
#define REVEDGE_FORWARD_BLOCK_H

#include "bit_block.h"
#include "neuron_block.h"

typedef struct {
    float *s;      /* or NULL */
    uint8_t *bits; /* or NULL */
    int whole;     /* every block starts at a byte */
} spikes_t;

/* Block of n neurons at `at` of the R per time step. row: scratch [n] bytes for packing. */
CLONES static void forward_block(const float *y, affine_t a, const float *v0, spikes_t out,
                                 float *v, int64_t T, int64_t R, int64_t at, int64_t n, uint8_t *row,
                                 const neuron_t *q) {
    start_row(v0 ? v0 + at : NULL, v + at, n, q);
    for (int64_t t = 0; t < T; ++t) {
        const float *y_t = y + t * R + at;
        if (!out.bits) {
            step_any(WANT_FLOATS, y_t, a, v + at, (written_t){NULL, out.s + t * R + at, NULL}, n, q);
            continue;
        }
        step_any(WANT_BYTES, y_t, a, v + at, (written_t){NULL, NULL, row}, n, q);
        if (out.whole)
            gather_aligned(row, out.bits + (t * R + at) / 8, n);
        else
            gather_anywhere(row, out.bits, t * R + at, n);
    }
}

#endif
