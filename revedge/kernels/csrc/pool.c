/* Max pooling. x: P planes of H * W; y, g: P planes of OH * OW; g_x as x.
 *
 * As torch: the first of the largest in row-major order, or the last NaN, is the one that the
 * gradient goes to, and gradients are added in the order of the windows. Nothing is kept between
 * forward and backward: the place of the largest is found again.
 */
#include "window.h"

/* Index of the largest in the window of output (i, j). */
INLINE int64_t place_of(const float *x, const window_t *w, int64_t i, int64_t j) {
    const cover_t at = cover_of(w, i, j);
    int64_t best = at.from * w->W + at.start;
    for (int64_t r = at.from; r < at.to; ++r)
        for (int64_t c = at.start; c < at.stop; ++c) {
            const float value = x[r * w->W + c];
            if (value > x[best] || value != value) best = r * w->W + c;
        }
    return best;
}

#define LATER(value, best) ((value) > (best) || (value) != (value))

/* Windows of 2 x 2 that do not overlap, one row of them. */
INLINE void halve_row(const float *up, const float *down, float *restrict y, int64_t n) {
    for (int64_t j = 0; j < n; ++j) {
        float best = up[2 * j];
        best = LATER(up[2 * j + 1], best) ? up[2 * j + 1] : best;
        best = LATER(down[2 * j], best) ? down[2 * j] : best;
        best = LATER(down[2 * j + 1], best) ? down[2 * j + 1] : best;
        y[j] = best;
    }
}

INLINE void halve_row_back(const float *up, const float *down, const float *g,
                           float *restrict g_up, float *restrict g_down, int64_t n) {
    for (int64_t j = 0; j < n; ++j) {
        float best = up[2 * j];
        int which = 0;
        which = LATER(up[2 * j + 1], best) ? 1 : which;
        best = which == 1 ? up[2 * j + 1] : best;
        which = LATER(down[2 * j], best) ? 2 : which;
        best = which == 2 ? down[2 * j] : best;
        which = LATER(down[2 * j + 1], best) ? 3 : which;
        const float value = 0.0f + g[j]; /* a sum, as torch has it: never -0.0 */
        g_up[2 * j] = which == 0 ? value : 0.0f;
        g_up[2 * j + 1] = which == 1 ? value : 0.0f;
        g_down[2 * j] = which == 2 ? value : 0.0f;
        g_down[2 * j + 1] = which == 3 ? value : 0.0f;
    }
}

CLONES static void pool_plane(const float *x, float *y, const window_t *w) {
    for (int64_t i = 0; i < w->OH; ++i) {
        if (is_halving(w)) {
            const float *up = x + 2 * i * w->W;
            halve_row(up, up + w->W, y + i * w->OW, w->OW);
            continue;
        }
        for (int64_t j = 0; j < w->OW; ++j) y[i * w->OW + j] = x[place_of(x, w, i, j)];
    }
}

CLONES static void pool_plane_back(const float *x, const float *g, float *g_x, const window_t *w) {
    memset(g_x, 0, (size_t)(w->H * w->W) * sizeof(float));
    for (int64_t i = 0; i < w->OH; ++i) {
        if (is_halving(w)) {
            const int64_t at = 2 * i * w->W;
            halve_row_back(x + at, x + at + w->W, g + i * w->OW, g_x + at, g_x + at + w->W, w->OW);
            continue;
        }
        for (int64_t j = 0; j < w->OW; ++j) {
            const int64_t at = place_of(x, w, i, j);
            g_x[at] = g_x[at] + g[i * w->OW + j];
        }
    }
}

REVEDGE_API int revedge_max_pool(const float *x, float *y, int64_t P, int64_t H, int64_t W,
                                 int64_t OH, int64_t OW, int64_t kh, int64_t kw, int64_t sh,
                                 int64_t sw, int64_t ph, int64_t pw, const float *p, int threads) {
    (void)p;
    const window_t w = {H, W, OH, OW, kh, kw, sh, sw, ph, pw};
    threads = threads_for(P * H * W, P, threads);
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (int64_t k = 0; k < P; ++k) pool_plane(x + k * H * W, y + k * OH * OW, &w);
    return 0;
}

REVEDGE_API int revedge_max_pool_backward(const float *x, const float *g, float *g_x, int64_t P,
                                          int64_t H, int64_t W, int64_t OH, int64_t OW, int64_t kh,
                                          int64_t kw, int64_t sh, int64_t sw, int64_t ph,
                                          int64_t pw, const float *p, int threads) {
    (void)p;
    const window_t w = {H, W, OH, OW, kh, kw, sh, sw, ph, pw};
    threads = threads_for(P * H * W, P, threads);
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (int64_t k = 0; k < P; ++k)
        pool_plane_back(x + k * H * W, g + k * OH * OW, g_x + k * H * W, &w);
    return 0;
}
