// The AVX-512 instructions that lanes_avx512.cpp uses, lane by lane as their manual pages say, so that the AVX-512
// level runs (slowly) on any x86-64 processor. Conversions to fp16 use the processor's F16C, as on all with AVX2.
#pragma once

namespace emulated {
typedef uint32_t U32 __attribute__((vector_size(64)));
typedef uint64_t U64 __attribute__((vector_size(64)));
typedef uint16_t U16 __attribute__((vector_size(32)));

static inline __m512i set1_epi64(long long x) { return (__m512i)((U64){} + uint64_t(x)); }
static inline __m512i mul_epu32(__m512i a, __m512i b) {
    return (__m512i)(((U64)a & 0xFFFFFFFFull) * ((U64)b & 0xFFFFFFFFull));
}
static inline __m512i mask_blend_epi32(unsigned mask, __m512i a, __m512i b) {
    U32 out = (U32)a;
    for (int i = 0; i < 16; i++)
        if (mask >> i & 1) out[i] = ((U32)b)[i];
    return (__m512i)out;
}
static inline __m512i popcnt_epi32(__m512i a) {
    U32 out = (U32)a;
    for (int i = 0; i < 16; i++) out[i] = uint32_t(__builtin_popcount(out[i]));
    return (__m512i)out;
}
static inline __m512i cvtepu16_epi32(__m256i a) {
    U32 out = {};
    for (int i = 0; i < 16; i++) out[i] = ((U16)a)[i];
    return (__m512i)out;
}
static inline __m256i cvtepi32_epi16(__m512i a) {
    U16 out = {};
    for (int i = 0; i < 16; i++) out[i] = uint16_t(((U32)a)[i]);
    return (__m256i)out;
}
static inline __m256i load(const __m256i *from) {
    __m256i out;
    memcpy(&out, from, sizeof out);
    return out;
}
static inline void store(__m256i *to, __m256i x) { memcpy(to, &x, sizeof x); }
__attribute__((target("f16c"))) static float half_to_float(uint16_t h) { return _cvtsh_ss(h); }
__attribute__((target("f16c"))) static uint16_t float_to_half(float x) { return _cvtss_sh(x, 0); }
static inline __m512 cvtph_ps(__m256i a) {
    __m512 out = {};
    for (int i = 0; i < 16; i++) out[i] = half_to_float(((U16)a)[i]);
    return out;
}
static inline __m256i cvtps_ph(__m512 a, int) {
    U16 out = {};
    for (int i = 0; i < 16; i++) out[i] = float_to_half(a[i]);
    return (__m256i)out;
}
}  // namespace emulated

#define _mm512_set1_epi64 emulated::set1_epi64
#define _mm512_mul_epu32 emulated::mul_epu32
#define _mm512_mask_blend_epi32 emulated::mask_blend_epi32
#define _mm512_popcnt_epi32 emulated::popcnt_epi32
#define _mm512_cvtepu16_epi32 emulated::cvtepu16_epi32
#define _mm512_cvtepi32_epi16 emulated::cvtepi32_epi16
#define _mm512_cvtph_ps emulated::cvtph_ps
#undef _mm512_cvtps_ph
#define _mm512_cvtps_ph emulated::cvtps_ph
#define _mm256_loadu_si256 emulated::load
#define _mm256_storeu_si256 emulated::store
