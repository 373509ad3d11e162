/* What the kernels share. Plain C99 plus OpenMP; knows nothing of Python or torch.
 *
 * Every array is C-contiguous float32 unless said otherwise. Functions return 0, a positive flag,
 * or a negative code when scratch memory could not be had. Each file names its layout; T is time.
 *
 * The PyTorch reference fixes every rounding, so no expression here may be contracted or reordered:
 * compile with -ffp-contract=off and without -ffast-math. Work is cut into blocks that do not
 * depend on the number of threads, and no sum crosses a block that another thread owns.
 */
#ifndef REVEDGE_H
#define REVEDGE_H

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef _OPENMP
#include <omp.h>
#endif

#define REVEDGE_API __attribute__((visibility("default")))
#define INLINE static inline __attribute__((always_inline))

/* One copy per instruction set, chosen when the library is loaded. The worker functions carry it,
 * not the drivers: what OpenMP outlines of a driver would not inherit it. */
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__)
#define CLONES __attribute__((noinline, target_clones("avx512f", "avx2", "default")))
#else
#define CLONES __attribute__((noinline))
#endif

/* Where a compiler's own vectors do badly (masks to bits and back), intrinsics are chosen by hand:
 * vector_bits_here() is 512 (AVX-512F), 256 (AVX2) or 0. Tests lower revedge_vector_bits, so that
 * every way runs on one machine. */
#if defined(__x86_64__) && defined(__GNUC__)
#define HAS_INTRINSICS
#include <immintrin.h>
extern __attribute__((visibility("hidden"))) int revedge_vector_bits;

INLINE int vector_bits_here(void) {
    if (revedge_vector_bits >= 512 && __builtin_cpu_supports("avx512f")) return 512;
    return revedge_vector_bits >= 256 && __builtin_cpu_supports("avx2") ? 256 : 0;
}
#endif

/* Before a loop whose arrays may be one and the same, but never overlap at different indices. */
#if defined(__GNUC__) && !defined(__clang__)
#define INDEPENDENT _Pragma("GCC ivdep")
#elif defined(__clang__)
#define INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#else
#define INDEPENDENT
#endif

enum { OUT_OF_MEMORY = -1 };

/* Below this many element-steps per thread, waking another thread costs more than it saves. */
enum { WORK_PER_THREAD = 32768 };

INLINE int threads_for(int64_t work, int64_t tasks, int threads) {
    int64_t most = work / WORK_PER_THREAD;
    if (most > tasks) most = tasks;
    if (most < 1) most = 1;
    return most < threads ? (int)most : threads;
}

INLINE int thread_index(void) {
#ifdef _OPENMP
    return omp_get_thread_num();
#else
    return 0;
#endif
}

INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

/* Neurons per block, so that the T rows of one block stay in the first cache levels. */
INLINE int64_t block_for(int64_t rows) {
    int64_t block = 32768 / (rows > 0 ? rows : 1);
    block &= ~(int64_t)63;
    if (block < 64) block = 64;
    return block > 4096 ? 4096 : block;
}

/* Rows of one block lie a whole time step apart, where no hardware prefetcher looks. */
INLINE void fetch_row(const float *row, int64_t n) {
#ifdef __GNUC__
    for (int64_t j = 0; j < n; j += 16) __builtin_prefetch(row + j, 0, 2);
#else
    (void)row, (void)n;
#endif
}

#endif
