// y = x W^T for weights in 2, 3, 4 and 8 bits behind a plain C interface; lowmem/quant/codec.py says what bytes mean.
// Activations are fp32 (`exact`) or rounded here to int8 with a scale for every 64 columns; then sums of a block are
// integers and the same at every level. Each level is compiled for its own target and chosen at run time.
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
constexpr int64_t THREAD_WEIGHTS = 1 << 21;  // below this many weights a thread costs more than it saves

namespace portable {
#include "packed_portable.cpp"
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
#include "packed_vector.cpp"
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

// Owner of what Token points at, for `count` tokens of n columns.
struct Prepared {
    std::vector<float> exact, scales;
    std::vector<int8_t> codes, eights[2];
    std::vector<int32_t> start[2];
    std::vector<Token> tokens;
};

// A block with a NaN or an infinity gets the scale NaN: it must not look like a small number.
static void round_block(const float *x, int8_t *codes, float *scale) {
    float largest = 0, spoiled = 0;
    for (int j = 0; j < BLOCK; j++) {
        largest = std::max(largest, fabsf(x[j]));
        spoiled += x[j] - x[j];
    }
    bool usable = spoiled == 0 && largest > 1e-35f;  // below, 127 / largest would overflow
    float inverse = usable ? 127 / largest : 0;
    const float rounding = 12582912;  // 1.5 * 2^23: adding it rounds to whole numbers, ties to even
    for (int j = 0; j < BLOCK; j++) codes[j] = int8_t(usable ? x[j] * inverse + rounding - rounding : 0);
    *scale = spoiled == 0 ? (usable ? largest / 127 : 0) : NAN;
}

// Places the codes of one block, its offsets and its sums of eight.
static void place_block(Prepared &to, const Packed &w, int64_t token, int64_t chunks, int64_t block, const float *x) {
    int8_t codes[BLOCK];
    float scale;
    round_block(x, codes, &scale);
    int64_t chunk = token * chunks + block / 2;
    int h = int(block % 2), sum = 0;
    for (int j = 0; j < BLOCK; j++) {
        to.codes[chunk * CHUNK + j / 16 * 32 + 16 * h + j % 16] = codes[j];
        sum += codes[j];
    }
    for (int lane = 0; lane < 4; lane++) to.scales[chunk * 8 + 4 * h + lane] = scale;
    to.start[0][chunk * 8 + 4 * h] = -sum * (lattice(w.kind) ? OFFSET_E8 : w.offset);
    to.start[1][chunk * 8 + 4 * h] = -sum * (w.kind == NESTED ? OFFSET_E8 : OFFSET_E8R);
    for (int v = 0; v < 8; v++) {
        int eight = 0;
        for (int e = 0; e < 8; e++) eight += codes[8 * v + e];
        int high = (eight + 4) >> 3;
        to.eights[0][chunk * 32 + 16 * h + 8 + v] = int8_t(high);
        to.eights[1][chunk * 32 + 16 * h + 8 + v] = int8_t(eight - 8 * high);
    }
}

static Prepared prepare(const Packed &w, const float *x, int64_t count, bool exact) {
    int64_t blocks = (w.n + BLOCK - 1) / BLOCK, chunks = (blocks + 1) / 2;
    Prepared to;
    if (exact) to.exact.resize(count * chunks * CHUNK);
    else {
        to.codes.resize(count * chunks * CHUNK);
        to.scales.resize(count * chunks * 8);
        for (int p = 0; p < 2; p++) {
            to.start[p].resize(count * chunks * 8);
            to.eights[p].resize(count * chunks * 32);
        }
    }
    for (int64_t token = 0; token < count; token++)
        for (int64_t block = 0; block < blocks; block++) {
            float padded[BLOCK] = {};
            int64_t col = block * BLOCK;
            memcpy(padded, x + token * w.n + col, sizeof(float) * std::min<int64_t>(BLOCK, w.n - col));
            if (!exact) place_block(to, w, token, chunks, block, padded);
            else
                for (int j = 0; j < BLOCK; j++)
                    to.exact[(token * chunks + block / 2) * CHUNK + j / 16 * 32 + block % 2 * 16 + j % 16] = padded[j];
        }
    for (int64_t token = 0; token < count; token++) {
        int64_t chunk = token * chunks;
        if (exact) to.tokens.push_back({to.exact.data() + chunk * CHUNK, nullptr, nullptr, {}, {}});
        else
            to.tokens.push_back({nullptr, to.codes.data() + chunk * CHUNK, to.scales.data() + chunk * 8,
                                 {to.start[0].data() + chunk * 8, to.start[1].data() + chunk * 8},
                                 {to.eights[0].data() + chunk * 32, to.eights[1].data() + chunk * 32}});
    }
    return to;
}

// A shared stage of a small radix: its outputs stay in registers.
template <int RADIX>
static void rotate_small(const float *__restrict z, float *__restrict to, int64_t n, int64_t stride, const float *kernel) {
    int64_t block = RADIX * stride;
    for (int64_t c = 0; c < n / block; c++, z += block, to += block)
        if (stride == 1) {
            float sums[RADIX] = {};
            UNROLL for (int i = 0; i < RADIX; i++)
                UNROLL for (int j = 0; j < RADIX; j++) sums[j] += kernel[i * RADIX + j] * z[i];
            memcpy(to, sums, sizeof sums);
        } else
            for (int64_t s = 0; s < stride; s++)
                UNROLL for (int j = 0; j < RADIX; j++) {
                    float sum = 0;
                    UNROLL for (int i = 0; i < RADIX; i++) sum += kernel[i * RADIX + j] * z[i * stride + s];
                    to[j * stride + s] = sum;
                }
}

// One stage of a rotation: z'[c, j, s] = sum_i K[j, i] z[c, i, s], with K stored as (i, j) where all positions share
// it, else as (c, i, j, s). The inner loops run over neighbours, whichever axis has them.
static void rotate_stage(const float *z, float *to, int64_t n, int64_t radix, int64_t stride, bool shared,
                         const float *matrices) {
    if (shared && radix == 8) return rotate_small<8>(z, to, n, stride, matrices);
    if (shared && radix == 4) return rotate_small<4>(z, to, n, stride, matrices);
    if (shared && radix == 2) return rotate_small<2>(z, to, n, stride, matrices);
    int64_t block = radix * stride;
    memset(to, 0, sizeof(float) * n);
    for (int64_t c = 0; c < n / block; c++, z += block, to += block) {
        const float *kernel = shared ? matrices : matrices + c * radix * block;
        for (int64_t i = 0; i < radix; i++)
            if (stride == 1)
                for (int64_t j = 0; j < radix; j++) to[j] += kernel[i * radix + j] * z[i];
            else
                for (int64_t j = 0; j < radix; j++) {
                    const float *from = z + i * stride, *k = kernel + (i * radix + j) * (shared ? 1 : stride);
                    float *row = to + j * stride;
                    if (shared)
                        for (int64_t s = 0; s < stride; s++) row[s] += k[0] * from[s];
                    else
                        for (int64_t s = 0; s < stride; s++) row[s] += k[s] * from[s];
                }
    }
}

// Rows of x (count, n) times `before`, through the stages (radix, stride, shared), times `after`; either may be null.
extern "C" void lowmem_rotate(const float *x, float *out, int64_t count, int64_t n, const float *before,
                              const float *after, const int64_t *stages, int64_t stage_count, const float *matrices) {
    std::vector<float> first(n), second(n);
    for (int64_t row = 0; row < count; row++, x += n, out += n) {
        for (int64_t i = 0; i < n; i++) first[i] = before ? x[i] * before[i] : x[i];
        const float *kernel = matrices;
        for (int64_t t = 0; t < stage_count; t++) {
            int64_t radix = stages[3 * t], stride = stages[3 * t + 1], shared = stages[3 * t + 2];
            rotate_stage(first.data(), second.data(), n, radix, stride, shared, kernel);
            first.swap(second);
            kernel += shared ? radix * radix : n * radix;
        }
        for (int64_t i = 0; i < n; i++) out[i] = after ? first[i] * after[i] : first[i];
    }
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

extern "C" void lowmem_packed_matmul(const float *x, float *out, int64_t count, const uint8_t *plane0,
                                     const uint8_t *plane1, const uint16_t *scales, int64_t m, int64_t n, int64_t group,
                                     int kind, float gain, float residual_scale, const uint8_t *table, int offset,
                                     const uint8_t *patterns, const uint8_t *residual, int exact, int level,
                                     int threads) {
    std::vector<int32_t> groups(group ? (n + BLOCK - 1) / BLOCK + 1 : 0);
    for (size_t block = 0; block < groups.size(); block++)
        groups[block] = int32_t(std::min<int64_t>(block * BLOCK, n - 1) / group);
    Packed w = {{plane0, plane1}, scales, m,      n,        group,    kind,         gain, residual_scale,
                table,            offset, patterns, residual, groups.data()};
    Prepared ready = prepare(w, x, count, exact);
    auto work = [&](int64_t first, int64_t last) {
#if defined(__x86_64__)
        if (level == AVX512) return avx512::rows(w, ready.tokens.data(), int(count), exact, out, first, last);
        if (level == AVX2) return avx2::rows(w, ready.tokens.data(), int(count), exact, out, first, last);
#endif
        portable::rows(w, ready.tokens.data(), int(count), exact, out, first, last);
    };
    int64_t parts = std::max<int64_t>(1, std::min<int64_t>({int64_t(threads), m, m * n * count / THREAD_WEIGHTS}));
    std::vector<std::thread> helpers;
    for (int64_t i = 1; i < parts; i++) helpers.emplace_back(work, m * i / parts, m * (i + 1) / parts);
    work(0, m / parts);
    for (std::thread &helper : helpers) helper.join();
}
