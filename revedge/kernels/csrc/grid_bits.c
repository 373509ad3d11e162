/* Residual sums on the grid, and spikes at one bit each. */
#include "bit_block.h"
#include "unpack_lanes.h"

/* Half to even, as rint, but in operations that every instruction set has as vectors. */
INLINE float round_even(float q) {
    const float whole = 8388608.0f; /* 2^23: from here on every float32 is an integer */
    const float a = fabsf(q), r = (a + whole) - whole;
    return copysignf(a < whole ? r : a, q);
}

INLINE int grid_row_as(int affine, int has_x, const float *x, const float *y, float scale,
                       float shift, float *out, int64_t n, const float *p) {
    const float up = p[0], down = p[1], sign = p[2], limit = p[3];
    int bad = 0;
    for (int64_t i = 0; i < n; ++i) {
        const float z = affine ? y[i] * scale + shift : y[i];
        const float r = round_even(z * up) * down;
        const float value = (has_x ? x[i] : 0.0f) + sign * r;
        out[i] = value;
        bad |= !(fabsf(value) < limit); /* NaN too */
    }
    return bad;
}

CLONES static int grid_row(int affine, const float *x, const float *y, float scale, float shift,
                           float *out, int64_t n, const float *p) {
    if (x) return affine ? grid_row_as(1, 1, x, y, scale, shift, out, n, p)
                         : grid_row_as(0, 1, x, y, scale, shift, out, n, p);
    return affine ? grid_row_as(1, 0, x, y, scale, shift, out, n, p)
                  : grid_row_as(0, 0, x, y, scale, shift, out, n, p);
}

/* y: [M, C, S]; x (or NULL), out: [M, all, S], of which C channels from `first` on are worked on;
 * scale, shift: [C], or NULL (then M = C = 1).
 * p: 2^bits, 2^-bits, sign, limit. Returns 1 if a value left the range or is NaN. */
REVEDGE_API int revedge_grid_add(const float *x, const float *y, const float *scale,
                                 const float *shift, float *out, int64_t M, int64_t C, int64_t S,
                                 int64_t all, int64_t first, const float *p, int threads) {
    const int64_t size = 16384, pieces = (S + size - 1) / size;
    int bad = 0;
    threads = threads_for(M * C * S, M * C * pieces, threads);
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1) reduction(| : bad)
    for (int64_t task = 0; task < M * C * pieces; ++task) {
        const int64_t plane = task / pieces, from = task % pieces * size;
        const int64_t c = plane % C, at = (plane / C * all + first + c) * S + from;
        bad |= grid_row(scale != NULL, x ? x + at : NULL, y + plane * S + from,
                        scale ? scale[c] : 1.0f, shift ? shift[c] : 0.0f, out + at,
                        smaller(size, S - from), p);
    }
    return bad;
}

CLONES static void pack_block(const float *s, uint8_t *bytes, int64_t n) {
    pack_aligned(s, bytes, n);
}

CLONES static void unpack_block(const uint8_t *bytes, float *s, int64_t n) {
    int64_t i = unpack_lanes_here()(bytes, s, n);
    for (; i + 8 <= n; i += 8) {
        const int byte = bytes[i / 8];
        for (int k = 0; k < 8; ++k) s[i + k] = (float)((byte >> k) & 1);
    }
    for (; i < n; ++i) s[i] = (float)((bytes[i / 8] >> (i % 8)) & 1);
}

REVEDGE_API int revedge_pack_bits(const float *s, uint8_t *bytes, int64_t N, const float *p,
                                  int threads) {
    (void)p;
    const int64_t size = 65536, blocks = (N + size - 1) / size;
    threads = threads_for(N, blocks, threads);
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (int64_t b = 0; b < blocks; ++b)
        pack_block(s + b * size, bytes + b * (size / 8), smaller(size, N - b * size));
    return 0;
}

REVEDGE_API int revedge_unpack_bits(const uint8_t *bytes, float *s, int64_t N, const float *p,
                                    int threads) {
    (void)p;
    const int64_t size = 65536, blocks = (N + size - 1) / size;
    threads = threads_for(N, blocks, threads);
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (int64_t b = 0; b < blocks; ++b)
        unpack_block(bytes + b * (size / 8), s + b * size, smaller(size, N - b * size));
    return 0;
}
