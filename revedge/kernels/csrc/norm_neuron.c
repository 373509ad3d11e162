/* Batch norm and neuron in one sweep. y: [T, B, C, S]; v0, v, g_leak: [B, C, S]; else [C].
 * s, bits and g have `all` channels, of which C from `first` on are those of y: y may be a slab of
 * channels, so that no tensor of all of them has to stand beside these.
 *
 * Planes of SMALL or more elements are worked on one by one. Smaller ones, down to the single
 * element behind a linear layer, are taken together as rows of C * S neurons, each with its own
 * scale and shift.
 */
#include "forward_block.h"
#include "norm_channel.h"

enum { SMALL = 32 };

/* scale, shift of every neuron of a row [2][C * S]; NULL if memory is out. */
static float *expand(const float *scale, const float *shift, int64_t C, int64_t S) {
    float *each = malloc((size_t)(2 * C * S) * sizeof(float));
    if (!each) return NULL;
    for (int64_t c = 0; c < C; ++c)
        for (int64_t i = 0; i < S; ++i) {
            each[c * S + i] = scale[c];
            each[(C + c) * S + i] = shift[c];
        }
    return each;
}

REVEDGE_API int revedge_norm_neuron_forward(const float *y, const float *scale, const float *shift,
                                            const float *v0, float *s, uint8_t *bits, float *v,
                                            int64_t T, int64_t B, int64_t C, int64_t S,
                                            int64_t all, int64_t first, const float *p,
                                            int threads) {
    const neuron_t q = neuron_of(p);
    const int64_t R = B * C * S, size = block_for(T), scratch = forward_scratch(size);
    /* A unit is what one scale belongs to, or a whole row of small planes. */
    const int small = S < SMALL;
    const int64_t unit = small ? C * S : S, units = unit ? R / unit : 0;
    const int64_t pieces = (unit + size - 1) / size;
    /* Bits of several slabs, or of several threads, may share a byte. */
    const int whole = unit % 8 == 0 && size % 8 == 0 && all * S % 8 == 0 && first * S % 8 == 0;
    float *each = small && R ? expand(scale, shift, C, S) : NULL;
    threads = threads_for(R * T, units * pieces, threads);
    char *scratches = malloc((size_t)(threads * scratch));
    if (!scratches || (small && R && !each)) {
        free(scratches);
        free(each);
        return OUT_OF_MEMORY;
    }
    if (bits && !whole && C == all) memset(bits, 0, (size_t)((T * R + 7) / 8));
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (int64_t task = 0; task < units * pieces; ++task) {
        const int64_t u = task / pieces, from = task % pieces * size;
        const int64_t n = smaller(size, unit - from), at = u * unit + from;
        const int64_t b = u * unit / (C * S), c = small ? 0 : u % C;
        const spikes_t out = {s, bits, whole, (b * all + first + c) * S + from, B * all * S};
        affine_t a = {BY_ONE, scale + c, shift + c};
        if (small) a = (affine_t){BY_EACH, each + from, each + unit + from};
        forward_block(y + at, R, a, v0 ? v0 + at : NULL, out, v ? v + at : NULL, T, n, size,
                      scratches + thread_index() * scratch, &q);
    }
    free(scratches);
    free(each);
    return 0;
}

/* Neuron backward on `count` units of `unit` neurons each, `y_apart` and `g_apart` neurons apart. */
static void neuron_backward_units(rows_t rows, float *g_leak, int64_t T, int64_t unit,
                                  int64_t count, int64_t y_apart, int64_t g_apart, int64_t size,
                                  float *scratch, const neuron_t *q) {
    float *g_v = scratch + backward_steps(T, size);
    const affine_t whole = rows.affine;
    for (int64_t u = 0; u < count; ++u)
        for (int64_t from = 0; from < unit; from += size) {
            const int64_t n = smaller(size, unit - from), at = u * y_apart + from;
            rows_t block = rows;
            block.y += at;
            block.g_s += u * g_apart + from;
            block.g_x += u * g_apart + from;
            if (whole.mode == BY_EACH)
                block.affine = (affine_t){BY_EACH, whole.scale + from, whole.shift + from};
            memset(g_v, 0, (size_t)n * sizeof(float));
            backward_block(block, NULL, g_v, g_leak ? g_leak + at : NULL, T, n, size, scratch, q);
        }
}

REVEDGE_API int revedge_norm_neuron_backward(const float *y, float *g, const float *scale,
                                             const float *shift, const float *mean,
                                             const float *inv_std, const float *weight,
                                             float *g_weight, float *g_bias, float *g_leak,
                                             int64_t T, int64_t B, int64_t C, int64_t S,
                                             int64_t all, int64_t first, const float *p,
                                             int threads) {
    const neuron_t q = neuron_of(p);
    const int64_t R = B * C * S, G = B * all * S; /* of one time step of y, of g */
    const int64_t size = block_for(T), scratch = backward_scratch(T, size);
    const int small = S < SMALL;
    const int by_channel = threads_for(R * T, C, threads);
    const int by_sample = threads_for(R * T, B, threads);
    float *each = small && R ? expand(scale, shift, C, S) : NULL;
    float *scratches = malloc((size_t)(threads * scratch) * sizeof(float));
    if (!scratches || (small && R && !each)) {
        free(scratches);
        free(each);
        return OUT_OF_MEMORY;
    }
    g += first * S;
    if (small && R) {
#pragma omp parallel for num_threads(by_sample) schedule(static) if (by_sample > 1)
        for (int64_t b = 0; b < B; ++b) {
            const int64_t at = b * C * S;
            float *g_b = g + b * all * S;
            const rows_t rows = {y + at, R, g_b, g_b, G, {BY_EACH, each, each + C * S}};
            neuron_backward_units(rows, g_leak ? g_leak + at : NULL, T, C * S, 1, 0, 0, size,
                                  scratches + thread_index() * scratch, &q);
        }
    }
    /* All of one channel in turn, so that the second and third look at it find it in the cache. */
#pragma omp parallel for num_threads(by_channel) schedule(static) if (by_channel > 1)
    for (int64_t c = 0; c < C; ++c) {
        const int64_t at = c * S;
        if (!small) {
            const rows_t rows = {y + at, R, g + at, g + at, G, {BY_ONE, scale + c, shift + c}};
            neuron_backward_units(rows, g_leak ? g_leak + at : NULL, T, S, B, C * S, all * S, size,
                                  scratches + thread_index() * scratch, &q);
        }
        norm_backward_channel(y + at, C * S, g + at, all * S, g + at, all * S, mean[c], inv_std[c],
                              weight[c], g_weight + c, g_bias + c, T * B, S);
    }
    free(scratches);
    free(each);
    return 0;
}

/* The neuron's part of it for a span of time: g becomes the gradient of y * scale + shift, which never stands.
 * v0: the membranes before the span, or NULL; g_vT: the gradient of those behind it, or NULL; g_v0: of v0. */
REVEDGE_API int revedge_norm_neuron_span_backward(const float *y, const float *scale,
                                                  const float *shift, const float *v0, float *g,
                                                  const float *g_vT, float *g_v0, float *g_leak,
                                                  int64_t T, int64_t B, int64_t C, int64_t S,
                                                  const float *p, int threads) {
    const neuron_t q = neuron_of(p);
    const int64_t R = B * C * S, size = block_for(T), scratch = backward_scratch(T, size);
    /* A unit is what one scale belongs to, or a whole row of small planes. */
    const int small = S < SMALL;
    const int64_t unit = small ? C * S : S, units = unit ? R / unit : 0;
    const int64_t pieces = (unit + size - 1) / size;
    float *each = small && R ? expand(scale, shift, C, S) : NULL;
    threads = threads_for(R * T, units * pieces, threads);
    float *scratches = malloc((size_t)(threads * scratch) * sizeof(float));
    if (!scratches || (small && R && !each)) {
        free(scratches);
        free(each);
        return OUT_OF_MEMORY;
    }
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (int64_t task = 0; task < units * pieces; ++task) {
        const int64_t u = task / pieces, from = task % pieces * size;
        const int64_t n = smaller(size, unit - from), at = u * unit + from, c = small ? 0 : u % C;
        affine_t a = {BY_ONE, scale + c, shift + c};
        if (small) a = (affine_t){BY_EACH, each + from, each + unit + from};
        const rows_t rows = {y + at, R, g + at, g + at, R, a};
        if (g_vT)
            memcpy(g_v0 + at, g_vT + at, (size_t)n * sizeof(float));
        else
            memset(g_v0 + at, 0, (size_t)n * sizeof(float));
        backward_block(rows, v0 ? v0 + at : NULL, g_v0 + at, g_leak ? g_leak + at : NULL, T, n,
                       size, scratches + thread_index() * scratch, &q);
    }
    free(scratches);
    free(each);
    return 0;
}
