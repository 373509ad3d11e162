/* Integrate-and-fire over a whole sequence. s, g_s, g_x: [T, N]; bits: of s; v0, v, g_vT, g_v0, g_leak: [N].
 * x: T rows of N, `stride` apart; 0 for a row that is every step's.
 * v and g_v0 may be NULL: who does not want the state does not pay for it. */
#include "forward_block.h"

REVEDGE_API int revedge_abi_version(void) { return 8; }

#ifdef HAS_INTRINSICS
int revedge_vector_bits = 512;

REVEDGE_API void revedge_limit_vectors(int bits) { revedge_vector_bits = bits; }
#else
REVEDGE_API void revedge_limit_vectors(int bits) { (void)bits; }
#endif

REVEDGE_API int revedge_has_openmp(void) {
#ifdef _OPENMP
    return 1;
#else
    return 0;
#endif
}

static const affine_t AS_IT_IS = {PLAIN, NULL, NULL};

REVEDGE_API int revedge_neuron_forward(const float *x, const float *v0, float *s, uint8_t *bits,
                                       float *v, int64_t T, int64_t N, int64_t stride,
                                       const float *p, int threads) {
    const neuron_t q = neuron_of(p);
    const int64_t size = block_for(T), blocks = (N + size - 1) / size;
    const int64_t scratch = forward_scratch(size);
    const int whole = N % 8 == 0 && size % 8 == 0;
    threads = threads_for(T * N, blocks, threads);
    char *all = malloc((size_t)(threads * scratch));
    if (!all) return OUT_OF_MEMORY;
    if (bits && !whole) memset(bits, 0, (size_t)((T * N + 7) / 8));
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (int64_t b = 0; b < blocks; ++b) {
        const int64_t at = b * size;
        const spikes_t out = {s, bits, whole, at, N};
        forward_block(x + at, stride, AS_IT_IS, v0 ? v0 + at : NULL, out, v ? v + at : NULL, T,
                      smaller(size, N - at), size, all + thread_index() * scratch, &q);
    }
    free(all);
    return 0;
}

REVEDGE_API int revedge_neuron_backward(const float *x, const float *v0, const float *g_s,
                                        float *g_x, const float *g_vT, float *g_v0, float *g_leak,
                                        int64_t T, int64_t N, int64_t stride, const float *p,
                                        int threads) {
    const neuron_t q = neuron_of(p);
    const int64_t size = block_for(T), blocks = (N + size - 1) / size;
    const int64_t scratch = backward_scratch(T, size);
    threads = threads_for(T * N, blocks, threads);
    float *all = malloc((size_t)(threads * scratch) * sizeof(float));
    if (!all) return OUT_OF_MEMORY;
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (int64_t b = 0; b < blocks; ++b) {
        const int64_t at = b * size, n = smaller(size, N - at);
        float *own = all + thread_index() * scratch;
        float *g_v = g_v0 ? g_v0 + at : own + backward_steps(T, size);
        const rows_t rows = {x + at, stride, g_s + at, g_x + at, N, AS_IT_IS};
        if (g_vT)
            memcpy(g_v, g_vT + at, (size_t)n * sizeof(float));
        else
            memset(g_v, 0, (size_t)n * sizeof(float));
        backward_block(rows, v0 ? v0 + at : NULL, g_v, g_leak ? g_leak + at : NULL, T, n, size,
                       own, &q);
    }
    free(all);
    return 0;
}
