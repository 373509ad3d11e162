/* Batch norm by its parts. y, z: [M, C, S]; g: [M, C_of_g, S] of which C channels from `first` on are
 * worked on; everything else: [C]. A thread owns a channel. */
#include "norm_channel.h"

/* Add the elements of y to the lanes [2][C][LANES] of sums and squares. */
CLONES static void lanes_channel(const float *y, double *lanes, double *squares, int64_t M,
                                 int64_t S, int64_t stride) {
    add_to_lanes(0, y, stride, NULL, 0, 0.0f, M, S, lanes, squares);
}

REVEDGE_API int revedge_channel_lanes(const float *y, double *lanes, int64_t M, int64_t C,
                                      int64_t S, const float *p, int threads) {
    (void)p;
    threads = threads_for(M * C * S, C, threads);
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (int64_t c = 0; c < C; ++c)
        lanes_channel(y + c * S, lanes + c * LANES, lanes + (C + c) * LANES, M, S, C * S);
    return 0;
}

REVEDGE_API int revedge_lane_stats(const double *lanes, float *mean, float *variance, int64_t C,
                                   int64_t count, const float *p, int threads) {
    (void)p, (void)threads;
    for (int64_t c = 0; c < C; ++c) {
        double sums[LANES], squares[LANES];
        memcpy(sums, lanes + c * LANES, sizeof sums);
        memcpy(squares, lanes + (C + c) * LANES, sizeof squares);
        const double average = pairwise(sums) / (double)count;
        const double square = pairwise(squares) / (double)count;
        const double spread = square - average * average;
        mean[c] = (float)average;
        variance[c] = (float)(spread > 0.0 ? spread : 0.0 * square); /* rounding may go below 0 */
    }
    return 0;
}

CLONES static void scale_plane(const float *y, float scale, float shift, float *restrict z,
                               int64_t S) {
    for (int64_t i = 0; i < S; ++i) z[i] = y[i] * scale + shift;
}

CLONES static void scale_channels(const float *y, const float *scale, const float *shift,
                                  float *restrict z, int64_t C) {
    for (int64_t c = 0; c < C; ++c) z[c] = y[c] * scale[c] + shift[c];
}

REVEDGE_API int revedge_norm_forward(const float *y, const float *scale, const float *shift,
                                     float *z, int64_t M, int64_t C, int64_t S, const float *p,
                                     int threads) {
    (void)p;
    threads = threads_for(M * C * S, M, threads);
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (int64_t m = 0; m < M; ++m) {
        if (S == 1) {
            scale_channels(y + m * C, scale, shift, z + m * C, C);
            continue;
        }
        for (int64_t c = 0; c < C; ++c) {
            const int64_t at = (m * C + c) * S;
            scale_plane(y + at, scale[c], shift[c], z + at, S);
        }
    }
    return 0;
}

/* The result is written over y if over_y, else over the channels of g. */
REVEDGE_API int revedge_norm_backward(float *y, float *g, const float *mean, const float *inv_std,
                                      const float *weight, float *g_weight, float *g_bias,
                                      int64_t M, int64_t C, int64_t S, int64_t C_of_g,
                                      int64_t first, int64_t over_y, const float *p, int threads) {
    (void)p;
    threads = threads_for(M * C * S, C, threads);
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (int64_t c = 0; c < C; ++c) {
        float *y_c = y + c * S, *g_c = g + (first + c) * S;
        norm_backward_channel(y_c, C * S, g_c, C_of_g * S, over_y ? y_c : g_c,
                              (over_y ? C : C_of_g) * S, mean[c], inv_std[c], weight[c],
                              g_weight + c, g_bias + c, M, S);
    }
    return 0;
}

/* The two halves of revedge_norm_backward, for a tensor that comes in pieces of M. */

CLONES static void gradient_lanes_channel(const float *y, const float *g, float mean,
                                          double *lanes, double *products, int64_t M, int64_t S,
                                          int64_t stride) {
    add_to_lanes(1, y, stride, g, stride, mean, M, S, lanes, products);
}

/* Add g and g * (y - mean) to the lanes [2][C][LANES]. */
REVEDGE_API int revedge_gradient_lanes(const float *y, const float *g, const float *mean,
                                       double *lanes, int64_t M, int64_t C, int64_t S,
                                       const float *p, int threads) {
    (void)p;
    threads = threads_for(M * C * S, C, threads);
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (int64_t c = 0; c < C; ++c)
        gradient_lanes_channel(y + c * S, g + c * S, mean[c], lanes + c * LANES,
                               lanes + (C + c) * LANES, M, S, C * S);
    return 0;
}

/* results [4][C]: a, b, g_weight, g_bias; count values a channel. */
REVEDGE_API int revedge_lane_gradients(const double *lanes, const float *inv_std, float *results,
                                       int64_t C, int64_t count, const float *p, int threads) {
    (void)p, (void)threads;
    for (int64_t c = 0; c < C; ++c) {
        double sums[LANES], products[LANES];
        memcpy(sums, lanes + c * LANES, sizeof sums);
        memcpy(products, lanes + (C + c) * LANES, sizeof products);
        const channel_gradient_t found = gradient_of_lanes(sums, products, inv_std[c], count);
        results[c] = found.a;
        results[C + c] = found.b;
        results[2 * C + c] = found.g_weight;
        results[3 * C + c] = found.g_bias;
    }
    return 0;
}

CLONES static void apply_channel(const float *y, const float *g, float *out, float mean, float a,
                                 float b, float scale, int64_t M, int64_t S, int64_t stride) {
    norm_backward_apply(y, stride, g, stride, out, stride, mean, a, b, scale, M, S);
}

REVEDGE_API int revedge_norm_backward_apply(float *y, float *g, const float *mean,
                                            const float *inv_std, const float *weight,
                                            const float *results, int64_t M, int64_t C, int64_t S,
                                            int64_t over_y, const float *p, int threads) {
    (void)p;
    threads = threads_for(M * C * S, C, threads);
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (int64_t c = 0; c < C; ++c)
        apply_channel(y + c * S, g + c * S, (over_y ? y : g) + c * S, mean[c], results[c],
                      results[C + c], weight[c] * inv_std[c], M, S, C * S);
    return 0;
}
