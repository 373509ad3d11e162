/* Batch norm, neuron and pool in one sweep, a plane at a time. y: [T, B, C, H, W]; pooled spikes and
 * g_pooled: [T, B, all, OH, OW]; g: [T, B, all, H, W]; channel c of y is `first + c` of `all`.
 * If y has all channels, g may be y. Without scale and shift, and mean to weight, there is no norm;
 * `step` is how far the time steps of y are apart, 0 for one that is repeated.
 *
 * Of two spikes neither is larger, so the gradient of a window's maximum goes to its first spike, or
 * to its first element if there is none, as in pool.c.
 */
#include "bit_block.h"
#include "neuron_block.h"
#include "norm_channel.h"
#include "pack_step.h"
#include "window.h"

INLINE affine_t affine_of(const float *scale, const float *shift, int64_t c) {
    return scale ? (affine_t){BY_ONE, scale + c, shift + c} : (affine_t){PLAIN, NULL, NULL};
}

/* Whether a window has a spike: its maximum. */
CLONES static void pool_ones(const uint8_t *ones, uint8_t *restrict pooled, const window_t *w) {
    for (int64_t i = 0; i < w->OH; ++i) {
        uint8_t *restrict row = pooled + i * w->OW;
        if (is_halving(w)) {
            const uint8_t *up = ones + 2 * i * w->W, *down = up + w->W;
            for (int64_t j = 0; j < w->OW; ++j)
                row[j] = (uint8_t)(up[2 * j] | up[2 * j + 1] | down[2 * j] | down[2 * j + 1]);
            continue;
        }
        for (int64_t j = 0; j < w->OW; ++j) {
            const cover_t at = cover_of(w, i, j);
            unsigned any = 0;
            for (int64_t r = at.from; r < at.to; ++r)
                for (int64_t c = at.start; c < at.stop; ++c) any |= ones[r * w->W + c];
            row[j] = (uint8_t)any;
        }
    }
}

/* Halving windows over rows of whole bytes, on the bits themselves; `pooled` starts at a byte. */
CLONES static void pool_bits(const uint8_t *bits, uint8_t *restrict pooled, const window_t *w) {
    const int64_t bytes = w->W / 8;
    int64_t nibble = 0;
    for (int64_t i = 0; i < w->OH; ++i) {
        const uint8_t *up = bits + 2 * i * bytes, *down = up + bytes;
        for (int64_t k = 0; k < bytes; ++k, ++nibble) {
            unsigned x = up[k] | down[k];
            x = (x | x >> 1) & 0x55; /* every other bit, then moved together */
            x = (x | x >> 1) & 0x33;
            x = (x | x >> 2) & 0x0f;
            if (nibble % 2 == 0)
                pooled[nibble / 2] = (uint8_t)x;
            else
                pooled[nibble / 2] = (uint8_t)(pooled[nibble / 2] | x << 4);
        }
    }
}

REVEDGE_API int revedge_norm_neuron_pool(const float *y, const float *scale, const float *shift,
                                         uint8_t *bits, int64_t T, int64_t B, int64_t C,
                                         int64_t H, int64_t W, int64_t all, int64_t first,
                                         int64_t OH, int64_t OW, int64_t kh, int64_t kw,
                                         int64_t sh, int64_t sw, int64_t ph, int64_t pw,
                                         int64_t step, const float *p, int threads) {
    const neuron_t q = neuron_of(p);
    const window_t w = {H, W, OH, OW, kh, kw, sh, sw, ph, pw};
    const int64_t S = H * W, O = OH * OW, scratch = S * (int64_t)(sizeof(float) + 1) + O;
    const int by_bits = is_halving(&w) && W % 8 == 0 && H == 2 * OH && O % 8 == 0;
    pack_step_t *const pack_step = pack_step_here();
    threads = threads_for(T * B * C * S, B * C, threads);
    char *scratches = malloc((size_t)(threads * scratch));
    if (!scratches) return OUT_OF_MEMORY;
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (int64_t unit = 0; unit < B * C; ++unit) {
        const int64_t b = unit / C, c = unit % C;
        float *v = (float *)(scratches + thread_index() * scratch);
        uint8_t *ones = (uint8_t *)(v + S), *pooled = ones + S;
        const affine_t a = affine_of(scale, shift, c);
        start_row(NULL, v, S, &q);
        for (int64_t t = 0; t < T; ++t) {
            const int64_t to = ((t * B + b) * all + first + c) * O;
            const float *y_t = y + t * step + unit * S;
            /* All of the plane, or, short of whole vectors, nothing. */
            if (by_bits && S % 16 == 0 && pack_step(a.mode, q.hard, y_t, a, v, ones, S, &q) == S) {
                pool_bits(ones, bits + to / 8, &w);
                continue;
            }
            step_any(WANT_BYTES, y_t, a, v, (written_t){NULL, NULL, ones}, S, &q);
            pool_ones(ones, pooled, &w);
            if (O % 8 == 0)
                gather_aligned(pooled, bits + to / 8, O);
            else
                gather_anywhere(pooled, bits, to, O);
        }
    }
    free(scratches);
    return 0;
}

/* Gradient of the spikes of a plane from that of their maxima; h tells who fired. */
CLONES static void spread_to_first(const float *h, float threshold, const float *g, float *restrict g_s,
                                   const window_t *w) {
    if (is_halving(w) && w->H == 2 * w->OH && w->W == 2 * w->OW) { /* each neuron in one window */
        for (int64_t i = 0; i < w->OH; ++i) {
            const float *up = h + 2 * i * w->W, *down = up + w->W, *g_i = g + i * w->OW;
            float *restrict g_up = g_s + 2 * i * w->W, *restrict g_down = g_up + w->W;
            for (int64_t j = 0; j < w->OW; ++j) {
                const int b = up[2 * j + 1] >= threshold, c = down[2 * j] >= threshold;
                const int d = down[2 * j + 1] >= threshold, a = up[2 * j] >= threshold;
                const float value = 0.0f + g_i[j]; /* a sum, as torch has it: never -0.0 */
                /* No branches, so that the compiler makes vectors of it. */
                const int first = a | (1 ^ (b | c | d)), second = b & (1 ^ a);
                const int third = c & (1 ^ (a | b)), fourth = d & (1 ^ (a | b | c));
                g_up[2 * j] = first ? value : 0.0f;
                g_up[2 * j + 1] = second ? value : 0.0f;
                g_down[2 * j] = third ? value : 0.0f;
                g_down[2 * j + 1] = fourth ? value : 0.0f;
            }
        }
        return;
    }
    memset(g_s, 0, (size_t)(w->H * w->W) * sizeof(float));
    for (int64_t i = 0; i < w->OH; ++i)
        for (int64_t j = 0; j < w->OW; ++j) {
            const cover_t at = cover_of(w, i, j);
            int64_t place = at.from * w->W + at.start;
            for (int64_t r = at.to - 1; r >= at.from; --r)
                for (int64_t c = at.stop - 1; c >= at.start; --c)
                    if (h[r * w->W + c] >= threshold) place = r * w->W + c;
            g_s[place] = g_s[place] + g[i * w->OW + j];
        }
}

/* Gradient of the spikes of a plane from that of their means. */
CLONES static void spread_evenly(const float *g, float *restrict g_s, const window_t *w) {
    const float count = (float)(w->kh * w->kw);
    memset(g_s, 0, (size_t)(w->H * w->W) * sizeof(float));
    for (int64_t i = 0; i < w->OH; ++i)
        for (int64_t j = 0; j < w->OW; ++j) {
            const cover_t at = cover_of(w, i, j);
            const float share = g[i * w->OW + j] / count;
            for (int64_t r = at.from; r < at.to; ++r)
                for (int64_t c = at.start; c < at.stop; ++c)
                    g_s[r * w->W + c] = g_s[r * w->W + c] + share;
        }
}

REVEDGE_API int revedge_norm_neuron_pool_backward(
    const float *y, const float *g_pooled, float *g, const float *scale, const float *shift,
    const float *mean, const float *inv_std, const float *weight, float *g_weight, float *g_bias,
    float *g_leak, int64_t T, int64_t B, int64_t C, int64_t H, int64_t W, int64_t all,
    int64_t first, int64_t OH, int64_t OW, int64_t kh, int64_t kw, int64_t sh, int64_t sw,
    int64_t ph, int64_t pw, int64_t step, int64_t average, const float *p, int threads) {
    const neuron_t q = neuron_of(p);
    const window_t w = {H, W, OH, OW, kh, kw, sh, sw, ph, pw};
    const int64_t S = H * W, O = OH * OW, steps = backward_scratch(T, S);
    /* Over y itself the gradient goes only when its channel is done with. */
    const int in_place = g == y;
    const int64_t scratch = steps + (in_place ? T * B * S : 0);
    threads = threads_for(T * B * C * S, C, threads);
    float *scratches = malloc((size_t)(threads * scratch) * sizeof(float));
    if (!scratches) return OUT_OF_MEMORY;
    g += first * S;
    g_pooled += first * O;
    /* All of one channel in turn, so that the sums find it in the cache. */
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (int64_t c = 0; c < C; ++c) {
        float *h = scratches + thread_index() * scratch, *g_v = h + backward_steps(T, S);
        float *g_c = in_place ? h + steps : g + c * S;
        const int64_t apart = in_place ? S : all * S; /* of the planes of g_c */
        for (int64_t b = 0; b < B; ++b) {
            const int64_t at = (b * C + c) * S;
            float *g_b = g_c + b * apart;
            const rows_t rows = {y + at, step, g_b, g_b, B * apart, affine_of(scale, shift, c)};
            forward_steps(rows, NULL, T, S, S, h, &q);
            for (int64_t t = 0; t < T; ++t) {
                const float *g_o = g_pooled + ((t * B + b) * all + c) * O;
                float *g_s = g_b + t * B * apart;
                if (average)
                    spread_evenly(g_o, g_s, &w);
                else
                    spread_to_first(h + t * S, q.v_threshold, g_o, g_s, &w);
            }
            memset(g_v, 0, (size_t)S * sizeof(float));
            back_steps(rows, NULL, g_v, g_leak ? g_leak + at : NULL, T, S, S, h, &q);
        }
        if (weight)
            norm_backward_channel(y + c * S, C * S, g_c, apart, g_c, apart, mean[c], inv_std[c],
                                  weight[c], g_weight + c, g_bias + c, T * B, S);
        for (int64_t k = 0; in_place && k < T * B; ++k)
            memcpy(g + (k * C + c) * S, g_c + k * S, (size_t)S * sizeof(float));
    }
    free(scratches);
    return 0;
}

/* n bits from any bit on, as bytes of 0 and 1. */
INLINE void ones_of(const uint8_t *bits, int64_t first_bit, uint8_t *ones, int64_t n) {
    int64_t i = 0;
    for (; first_bit % 8 == 0 && i + 8 <= n; i += 8) {
        /* The byte eight times, of each copy another bit, and that moved down to the lowest. */
        const uint64_t copies = bits[(first_bit + i) / 8] * UINT64_C(0x0101010101010101);
        const uint64_t apart = copies & UINT64_C(0x8040201008040201);
        const uint64_t word = (apart + UINT64_C(0x7f7f7f7f7f7f7f7f)) >> 7 & UINT64_C(0x0101010101010101);
        memcpy(ones + i, &word, 8);
    }
    for (; i < n; ++i) {
        const int64_t bit = first_bit + i;
        ones[i] = (uint8_t)(bits[bit / 8] >> (bit % 8) & 1);
    }
}

/* Means of the windows of N planes of spikes, each an exact count by the window's size. */
CLONES static void average_plane(const uint8_t *ones, float *restrict mean, const window_t *w) {
    const float count = (float)(w->kh * w->kw);
    for (int64_t i = 0; i < w->OH; ++i)
        for (int64_t j = 0; j < w->OW; ++j) {
            const cover_t at = cover_of(w, i, j);
            int sum = 0;
            for (int64_t r = at.from; r < at.to; ++r)
                for (int64_t c = at.start; c < at.stop; ++c) sum += ones[r * w->W + c];
            mean[i * w->OW + j] = (float)sum / count;
        }
}

REVEDGE_API int revedge_average_bits(const uint8_t *bits, float *mean, int64_t N, int64_t H,
                                     int64_t W, int64_t OH, int64_t OW, int64_t kh, int64_t kw,
                                     int64_t sh, int64_t sw, int64_t ph, int64_t pw,
                                     const float *p, int threads) {
    (void)p;
    const window_t w = {H, W, OH, OW, kh, kw, sh, sw, ph, pw};
    const int64_t S = H * W, O = OH * OW;
    threads = threads_for(N * S, N, threads);
    uint8_t *scratches = malloc((size_t)(threads * S));
    if (!scratches) return OUT_OF_MEMORY;
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (int64_t k = 0; k < N; ++k) {
        uint8_t *ones = scratches + thread_index() * S;
        ones_of(bits, k * S, ones, S);
        average_plane(ones, mean + k * O, &w);
    }
    free(scratches);
    return 0;
}
