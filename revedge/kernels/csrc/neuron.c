/* Integrate-and-fire over a whole sequence. x, s, g_s, g_x: [T, N]; bits: of s; v0, v, g_vT, g_v0, g_leak: [N]. */
#include "forward_block.h"

REVEDGE_API int revedge_abi_version(void) { return 2; }

REVEDGE_API int revedge_has_openmp(void) {
#ifdef _OPENMP
    return 1;
#else
    return 0;
#endif
}

static const affine_t AS_IT_IS = {PLAIN, NULL, NULL};

REVEDGE_API int revedge_neuron_forward(const float *x, const float *v0, float *s, uint8_t *bits,
                                       float *v, int64_t T, int64_t N, const float *p,
                                       int threads) {
    const neuron_t q = neuron_of(p);
    const int64_t size = block_for(T), blocks = (N + size - 1) / size;
    const spikes_t out = {s, bits, N % 8 == 0 && size % 8 == 0};
    threads = threads_for(T * N, blocks, threads);
    uint8_t *row = malloc((size_t)threads * (size_t)size);
    if (!row) return OUT_OF_MEMORY;
    if (bits && !out.whole) memset(bits, 0, (size_t)((T * N + 7) / 8));
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (int64_t b = 0; b < blocks; ++b) {
        const int64_t at = b * size;
        forward_block(x, AS_IT_IS, v0, out, v, T, N, at, smaller(size, N - at),
                      row + thread_index() * size, &q);
    }
    free(row);
    return 0;
}

REVEDGE_API int revedge_neuron_backward(const float *x, const float *v0, const float *g_s,
                                        float *g_x, const float *g_vT, float *g_v0, float *g_leak,
                                        int64_t T, int64_t N, const float *p, int threads) {
    const neuron_t q = neuron_of(p);
    const int64_t size = block_for(T), blocks = (N + size - 1) / size;
    const int64_t scratch = backward_scratch(T, size);
    threads = threads_for(T * N, blocks, threads);
    float *all = malloc((size_t)threads * (size_t)scratch * sizeof(float));
    if (!all) return OUT_OF_MEMORY;
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (int64_t b = 0; b < blocks; ++b) {
        const int64_t at = b * size, n = smaller(size, N - at);
        float *own = all + thread_index() * scratch;
        const rows_t rows = {x + at, N, g_s + at, g_x + at, N, AS_IT_IS};
        if (g_vT)
            memcpy(g_v0 + at, g_vT + at, (size_t)n * sizeof(float));
        else
            memset(g_v0 + at, 0, (size_t)n * sizeof(float));
        backward_block(rows, v0 ? v0 + at : NULL, g_v0 + at, g_leak ? g_leak + at : NULL, T, n,
                       size, own, &q);
    }
    free(all);
    return 0;
}
