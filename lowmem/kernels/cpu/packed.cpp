// y = x W^T for weights in 2, 3, 4 and 8 bits, and whole layers with their rotations, behind a plain C interface;
// lowmem/quant/codec.py says what bytes mean. Activations are fp32 (`exact`) or rounded here to int8 with a scale for
// every 64 columns; then sums of a block are integers and the same at every level. Each level is compiled for its own
// target and chosen at run time.
#include <math.h>
#include <stdint.h>
#include <string.h>

#include <algorithm>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif
#include "packed_common.h"

enum Level { PORTABLE = 0, AVX2 = 1, AVX512 = 2 };
enum Form { LEARNED = 0, SHARED = 1, HADAMARD = 2 };
constexpr int64_t THREAD_WEIGHTS = 1 << 21;  // below this many weights a thread costs more than it saves

// A rotation: rows times `before`, through the stages (radix, stride, form), times `after`; either may be null.
struct Stages {
    const float *before, *after;
    const int64_t *numbers;
    int64_t count;
    const float *matrices;
};

// Owner of what Token points at.
struct Ready {
    std::vector<float> exact, scales, start[2];
    std::vector<int8_t> codes;
    std::vector<Token> tokens;
    int64_t steps = 0;

    void resize(int64_t n, int64_t count, bool exact_) {
        steps = (n + STEP - 1) / STEP;
        size_t chunks = size_t(2 * count * steps);
        exact.resize(exact_ ? chunks * CHUNK : 0);
        codes.resize(exact_ ? 0 : chunks * CHUNK);
        scales.assign(exact_ ? 0 : chunks * 8, 0);
        for (std::vector<float> &part : start) part.assign(exact_ ? 0 : chunks * 8, 0);
        tokens.clear();
        for (int64_t t = 0, at = 0; t < count; t++, at += 2 * steps)
            tokens.push_back({exact.data() + at * CHUNK,
                              codes.data() + at * CHUNK,
                              scales.data() + at * 8,
                              {start[0].data() + at * 8, start[1].data() + at * 8},
                              {0, 0}});
    }
};

namespace portable {
#include "packed_portable.cpp"
#include "packed_prepare.cpp"
#include "rotate.cpp"
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

#define VNNI 0
TARGET("avx2,fma,f16c")
namespace avx2 {
#include "packed_prepare.cpp"
#include "packed_vector.cpp"
#include "rotate.cpp"
}
END_TARGET

#undef VNNI
#define VNNI 1
#if defined(LOWMEM_EMULATE_VNNI)  // a test runs the AVX-512 level where its one instruction is missing
TARGET("avx2,fma,f16c")
static inline __m256i emulated_dpbusd(__m256i sum, __m256i u, __m256i x) {
    __m256i low = _mm256_set1_epi16(255), ones = _mm256_set1_epi16(1);
    __m256i even = _mm256_mullo_epi16(_mm256_and_si256(u, low), _mm256_srai_epi16(_mm256_slli_epi16(x, 8), 8));
    __m256i odd = _mm256_mullo_epi16(_mm256_srli_epi16(u, 8), _mm256_srai_epi16(x, 8));
    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(even, ones));
    return _mm256_add_epi32(sum, _mm256_madd_epi16(odd, ones));
}
END_TARGET
#undef _mm256_dpbusd_epi32
#define _mm256_dpbusd_epi32 emulated_dpbusd
TARGET("avx2,fma,f16c")
#else
TARGET("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")
#endif
namespace avx512 {
#include "packed_vector.cpp"
}
END_TARGET
#endif

static void prepare(const Packed &w, Ready &to, const float *x, int64_t count, bool exact, int level) {
#if defined(__x86_64__)
    if (level != PORTABLE) return avx2::prepare(w, to, x, count, exact);
#endif
    portable::prepare(w, to, x, count, exact);
}

static void rotate(const Stages &by, const float *x, float *out, int64_t count, int64_t n, int level) {
    thread_local std::vector<float> first, second;
    first.resize(size_t(n)), second.resize(size_t(n));
#if defined(__x86_64__)
    if (level != PORTABLE) return avx2::rotate(by, x, out, count, n, first.data(), second.data());
#endif
    portable::rotate(by, x, out, count, n, first.data(), second.data());
}

static void multiply(const Packed &w, const Ready &ready, float *out, int64_t count, bool exact, int level, int threads) {
    auto work = [&](int64_t first, int64_t last) {
#if defined(__x86_64__)
        if (level == AVX512) return avx512::rows(w, ready.tokens.data(), int(count), exact, out, first, last);
        if (level == AVX2) return avx2::rows(w, ready.tokens.data(), int(count), exact, out, first, last);
#endif
        portable::rows(w, ready.tokens.data(), int(count), exact, out, first, last);
    };
    int64_t parts = std::max<int64_t>(1, std::min<int64_t>({int64_t(threads), w.m, w.m * w.n * count / THREAD_WEIGHTS}));
    std::vector<std::thread> helpers;
    for (int64_t i = 1; i < parts; i++) helpers.emplace_back(work, w.m * i / parts, w.m * (i + 1) / parts);
    work(0, w.m / parts);
    for (std::thread &helper : helpers) helper.join();
}

// The scale that serves each block; past the last block, of whole steps, the last one.
static void fill_groups(std::vector<int32_t> &groups, int64_t n, int64_t group) {
    groups.resize(group ? size_t((n + STEP - 1) / STEP * 4) : 0);
    for (size_t block = 0; block < groups.size(); block++)
        groups[block] = int32_t(std::min<int64_t>(int64_t(block) * BLOCK, n - 1) / group);
}

extern "C" int lowmem_packed_best_level() {
#if defined(LOWMEM_EMULATE_VNNI)
    return AVX512;
#elif defined(__x86_64__)
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") || !__builtin_cpu_supports("f16c"))
        return PORTABLE;
    bool wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
    return wide ? AVX512 : AVX2;
#else
    return PORTABLE;
#endif
}

extern "C" void lowmem_rotate(const float *x, float *out, int64_t count, int64_t n, const Stages *by, int level) {
    rotate(*by, x, out, count, n, level);
}

// `w` without its groups, which are made here.
extern "C" void lowmem_packed_matmul(const float *x, float *out, int64_t count, const Packed *w, int exact, int level,
                                     int threads) {
    thread_local std::vector<int32_t> kept_groups;
    thread_local Ready kept_ready;
    std::vector<int32_t> &groups = kept_groups;
    Ready &ready = kept_ready;
    Packed own = *w;
    fill_groups(groups, w->n, w->group);
    own.groups = groups.data();
    prepare(own, ready, x, count, exact, level);
    multiply(own, ready, out, count, exact, level, threads);
}

// Activations that were made ready last: layers that share an input and its rotation (q, k, v; gate, up) share them.
// The input is compared as a whole, so nothing has to be told when it changes.
struct Last {
    int64_t key = 0, n = 0, kind = -1, offset = 0, exact = -1, level = -1;
    std::vector<float> input;
    Ready ready;
};

static const Ready &shared_input(const Packed &w, const Stages *by, int64_t key, const float *x, int64_t count, int exact,
                                 int level) {
    thread_local Last last;
    thread_local std::vector<float> rotated;
    size_t size = size_t(count * w.n);
    if (key == last.key && w.n == last.n && w.kind == last.kind && w.offset == last.offset && exact == last.exact &&
        level == last.level && size == last.input.size() && !memcmp(x, last.input.data(), sizeof(float) * size))
        return last.ready;
    last.input.assign(x, x + size);
    rotated.resize(by ? size : 0);
    if (by) rotate(*by, x, rotated.data(), count, w.n, level);
    prepare(w, last.ready, by ? rotated.data() : x, count, exact, level);
    last.key = key, last.n = w.n, last.kind = w.kind, last.offset = w.offset, last.exact = exact, last.level = level;
    return last.ready;
}

// ((x V) W^T) U^T in one call; `into` and `out_of` may be null. `key` names the rotation V.
extern "C" void lowmem_packed_layer(const float *x, float *out, int64_t count, const Packed *w, const Stages *into,
                                    int64_t key, const Stages *out_of, int exact, int level, int threads) {
    thread_local std::vector<int32_t> kept_groups;
    std::vector<int32_t> &groups = kept_groups;
    Packed own = *w;
    fill_groups(groups, w->n, w->group);
    own.groups = groups.data();
    const Ready &ready = shared_input(own, into, key, x, count, exact, level);
    multiply(own, ready, out, count, exact, level, threads);
    if (out_of) rotate(*out_of, out, out, count, w->m, level);
}
