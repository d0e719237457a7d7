// Fused zeroth-order passes behind a plain C interface: W +- eps z into scratch, and W <- round(W keep - sum coef z).
// Same bits as lowmem/kernels/reference.py at every level; build with -ffp-contract=off, never with -march=native:
// each level is compiled for its own target and chosen at run time.
#include <stdint.h>
#include <string.h>

#include <algorithm>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif
#if defined(LOWMEM_AVX512_HEADER)  // a test replaces the AVX-512 instructions to run that level anywhere
#include LOWMEM_AVX512_HEADER
#endif

enum Type { FLOAT32 = 0, BFLOAT16 = 1, FLOAT16 = 2 };
enum Stream { STREAM_RADEMACHER = 0, STREAM_GAUSSIAN = 1, STREAM_ROUNDING = 2, STREAM_LEFT = 3, STREAM_RIGHT = 4 };
enum Level { PORTABLE = 0, AVX2 = 1, AVX512 = 2 };
constexpr int SEGMENT = 2048, MAX_RANK = 4096;
constexpr int64_t THREAD_ELEMENTS = 1 << 19;  // below this many weights a thread costs more than it saves

struct Term {
    uint64_t key;
    float coef;
};
struct Direction {
    int gaussian, rank;  // rank 0: not low-rank
    float unit;          // what a low-rank sum of whole numbers is multiplied by
};
struct Place {
    int64_t col;
    uint32_t row;
};
struct Part {
    int64_t first_row, last_row, first_col, last_col;
    float *right;  // scratch of rank * terms * SEGMENT, of this part alone
};
struct Perturb {
    const void *weight;
    void *plus, *minus;   // minus may be null
    const int64_t *rows;  // the rows to take, or null for all
    int64_t cols, stride;
    int type;
    Direction kind;
    Term term;
};
struct Update {
    void *weight;
    int64_t stride;
    int type;
    Direction kind;
    const Term *terms;  // of all steps, in order
    int64_t count;
    const int64_t *ends;            // of every step: where its terms end
    const uint64_t *rounding_keys;  // of every step
    int64_t steps;
    float keep;
};

#define UNROLL _Pragma("GCC unroll 16")

namespace portable {
#include "lanes_portable.cpp"
#include "passes.cpp"
}

#if defined(__x86_64__)
#define PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define TARGET(features) PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define END_TARGET PRAGMA(clang attribute pop)
#else
#define TARGET(features) PRAGMA(GCC push_options) PRAGMA(GCC target(features))
#define END_TARGET PRAGMA(GCC pop_options)
#endif

TARGET("avx2,f16c")
namespace avx2 {
#include "lanes_avx2.cpp"
#include "passes.cpp"
}
END_TARGET

#if defined(LOWMEM_AVX512_HEADER)
TARGET("sse2")
#else
TARGET("avx512f,avx512bw,avx512vl,avx512dq,avx512vpopcntdq")
#endif
namespace avx512 {
#include "lanes_avx512.cpp"
#include "passes.cpp"
}
END_TARGET
#endif

// Runs `work` over rows (or, of few rows, over columns) in as many threads as pay.
template <class Work>
static void in_threads(int64_t rows, int64_t cols, int64_t terms, int rank, int threads, Work work) {
    int64_t count = std::min<int64_t>(threads, rows * cols * std::max<int64_t>(terms, 1) / THREAD_ELEMENTS);
    bool by_rows = rows >= count;
    int64_t units = by_rows ? rows : (cols + SEGMENT - 1) / SEGMENT;
    count = std::max<int64_t>(std::min(count, units), 1);
    auto run = [&](int64_t i) {
        std::vector<float> right(size_t(rank) * terms * SEGMENT);
        int64_t first = units * i / count, last = units * (i + 1) / count;
        if (by_rows) work(Part{first, last, 0, cols, right.data()});
        else work(Part{0, rows, first * SEGMENT, std::min(last * SEGMENT, cols), right.data()});
    };
    std::vector<std::thread> helpers;
    for (int64_t i = 1; i < count; i++) helpers.emplace_back(run, i);
    run(0);
    for (std::thread &helper : helpers) helper.join();
}

extern "C" int lowmem_best_level() {
#if defined(LOWMEM_AVX512_HEADER)
    return AVX512;
#elif defined(__x86_64__)
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("f16c")) return PORTABLE;
    bool wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                __builtin_cpu_supports("avx512vpopcntdq");
    return wide ? AVX512 : AVX2;
#else
    return PORTABLE;
#endif
}

// Returns -1, or the position of the first row number outside [0, available).
extern "C" int64_t lowmem_perturb(const void *weight, void *plus, void *minus, const int64_t *rows, int64_t count,
                                  int64_t cols, int64_t stride, int64_t available, int type, int gaussian, int rank,
                                  float unit, uint64_t key, float eps, int level, int threads) {
    for (int64_t i = 0; rows && i < count; i++)
        if (rows[i] < 0 || rows[i] >= available) return i;
    Perturb job = {weight, plus, minus, rows, cols, stride, type, {gaussian, rank, unit}, {key, eps}};
    in_threads(count, cols, 1, rank, threads, [&](const Part &part) {
#if defined(__x86_64__)
        if (level == AVX512) return avx512::perturb(job, part);
        if (level == AVX2) return avx2::perturb(job, part);
#endif
        portable::perturb(job, part);
    });
    return -1;
}

// Many updates in one pass: a segment of weights takes the steps one after the other while it stays in the cache.
extern "C" void lowmem_update(void *weight, int64_t rows, int64_t cols, int64_t stride, int type, int gaussian, int rank,
                              float unit, const uint64_t *keys, const float *coefs, int64_t count, const int64_t *ends,
                              const uint64_t *rounding_keys, int64_t steps, float keep, int level, int threads) {
    std::vector<Term> terms;
    for (int64_t i = 0; i < count; i++) terms.push_back({keys[i], coefs[i]});
    Update job = {weight, stride, type, {gaussian, rank, unit}, terms.data(), count, ends, rounding_keys, steps, keep};
    in_threads(rows, cols, count, rank, threads, [&](const Part &part) {
#if defined(__x86_64__)
        if (level == AVX512) return avx512::update(job, part);
        if (level == AVX2) return avx2::update(job, part);
#endif
        portable::update(job, part);
    });
}
