/* Integrate-and-fire forward on one block of neurons, spikes as floats or as bits. */
#ifndef REVEDGE_FORWARD_BLOCK_H
#define REVEDGE_FORWARD_BLOCK_H

#include "bit_block.h"
#include "pack_step.h"

/* Where the spikes of a block go: element `at` and on, time steps `stride` elements apart. */
typedef struct {
    float *s;      /* or NULL */
    uint8_t *bits; /* or NULL */
    int whole;     /* every block starts at a byte */
    int64_t at, stride;
} spikes_t;

/* Bytes of scratch that a block of `size` neurons needs: a membrane, and spikes as bytes. */
INLINE int64_t forward_scratch(int64_t size) { return size * (int64_t)(sizeof(float) + 1); }

/* n neurons whose T inputs lie `stride` apart. v [n] is written if given, scratch: see above. */
CLONES static void forward_block(const float *y, int64_t stride, affine_t a, const float *v0,
                                 spikes_t out, float *v, int64_t T, int64_t n, int64_t size,
                                 void *scratch, const neuron_t *q) {
    uint8_t *row = (uint8_t *)scratch + size * (int64_t)sizeof(float);
    pack_step_t *const pack_step = pack_step_here();
    if (!v) v = scratch;
    start_row(v0, v, n, q);
    for (int64_t t = 0; t < T; ++t) {
        const float *y_t = y + t * stride;
        const int64_t to = out.at + t * out.stride;
        if (!out.bits) {
            step_any(WANT_FLOATS, y_t, a, v, (written_t){NULL, out.s + to, NULL}, n, q);
            continue;
        }
        const int64_t done =
            out.whole ? pack_step(a.mode, q->hard, y_t, a, v, out.bits + to / 8, n, q) : 0;
        if (done == n) continue;
        const affine_t rest = a.mode == BY_EACH ? (affine_t){BY_EACH, a.scale + done, a.shift + done} : a;
        step_any(WANT_BYTES, y_t + done, rest, v + done, (written_t){NULL, NULL, row}, n - done, q);
        if (out.whole)
            gather_aligned(row, out.bits + (to + done) / 8, n - done);
        else
            gather_anywhere(row, out.bits, to, n);
    }
}

#endif
