/* Sums and the norm's own arithmetic on one channel: M planes of S elements, a stride apart.
 *
 * The order of every sum is fixed by reference/norm.py: 16 float64 lanes, lane j takes elements
 * j, j + 16, ... of each plane, planes in order, those of a gradient from the last to the first;
 * then the lanes are added in pairs.
 */
#ifndef REVEDGE_NORM_CHANNEL_H
#define REVEDGE_NORM_CHANNEL_H

#include "revedge.h"

enum { LANES = 16 };

/* Vectors of four serve every instruction set; unaligned, since a plane may start anywhere. */
typedef float float4 __attribute__((vector_size(16), aligned(4), may_alias));
typedef double double4 __attribute__((vector_size(32)));

INLINE double pairwise(double *lane) {
    for (int width = LANES / 2; width; width /= 2)
        for (int j = 0; j < width; ++j) lane[j] = lane[j] + lane[j + width];
    return lane[0];
}

/* Add first to the lanes `sums` and first * second to the lanes `products`, where
 * first = y, second = y (statistics; g NULL), or first = g, second = y - mean (gradient). */
INLINE void add_to_lanes(int gradient, const float *y, int64_t y_stride, const float *g,
                         int64_t g_stride, float mean, int64_t M, int64_t S, double *sums,
                         double *products) {
    union {
        double lane[LANES];
        double4 four[LANES / 4];
    } a, b;
    memcpy(&a, sums, sizeof a);
    memcpy(&b, products, sizeof b);
    for (int64_t k = 0; k < M; ++k) {
        const int64_t m = gradient ? M - 1 - k : k;
        const float *py = y + m * y_stride, *pg = gradient ? g + m * g_stride : py;
        int64_t i = 0;
        for (; i + LANES <= S; i += LANES) {
            for (int k = 0; k < LANES / 4; ++k) {
                const float4 first = *(const float4 *)(pg + i + 4 * k);
                float4 second = *(const float4 *)(py + i + 4 * k);
                if (gradient) second = second - mean;
                const double4 wide = __builtin_convertvector(first, double4);
                a.four[k] = a.four[k] + wide;
                b.four[k] = b.four[k] + wide * __builtin_convertvector(second, double4);
            }
        }
        for (int64_t j = 0; i + j < S; ++j) {
            const float second = gradient ? py[i + j] - mean : py[i + j];
            const double wide = (double)pg[i + j];
            a.lane[j] = a.lane[j] + wide;
            b.lane[j] = b.lane[j] + wide * (double)second;
        }
    }
    memcpy(sums, &a, sizeof a);
    memcpy(products, &b, sizeof b);
}

/* What the gradient of a channel needs of its sums. */
typedef struct {
    float a, b; /* means of g and, in units of the variance, of g * (y - mean) */
    float g_weight, g_bias;
} channel_gradient_t;

INLINE channel_gradient_t gradient_of_lanes(double *lanes, double *products, float inv_std,
                                            int64_t count) {
    const double sums[2] = {pairwise(lanes), pairwise(products)};
    const double n = (double)count, inv = (double)inv_std;
    return (channel_gradient_t){(float)(sums[0] / n), (float)(((inv * sums[1]) * inv) / n),
                                (float)(sums[1] * inv), (float)sums[0]};
}

/* Write the gradient of y to out, which may be g or y. */
INLINE void norm_backward_apply(const float *y, int64_t y_stride, const float *g, int64_t g_stride,
                                float *out, int64_t out_stride, float mean, float a, float b,
                                float scale, int64_t M, int64_t S) {
    for (int64_t m = 0; m < M; ++m) {
        const float *py = y + m * y_stride, *pg = g + m * g_stride;
        float *po = out + m * out_stride;
        for (int64_t i = 0; i < S; ++i) {
            const float d = py[i] - mean;
            po[i] = ((pg[i] - a) - d * b) * scale;
        }
    }
}

/* Write the gradient of y to out, which may be g or y; write the gradients of weight and bias. */
CLONES static void norm_backward_channel(const float *y, int64_t y_stride, const float *g,
                                         int64_t g_stride, float *out, int64_t out_stride,
                                         float mean, float inv_std, float weight, float *g_weight,
                                         float *g_bias, int64_t M, int64_t S) {
    double lanes[LANES] = {0}, products[LANES] = {0};
    add_to_lanes(1, y, y_stride, g, g_stride, mean, M, S, lanes, products);
    const channel_gradient_t found = gradient_of_lanes(lanes, products, inv_std, M * S);
    *g_weight = found.g_weight;
    *g_bias = found.g_bias;
    norm_backward_apply(y, y_stride, g, g_stride, out, out_stride, mean, found.a, found.b,
                        weight * inv_std, M, S);
}

#endif
