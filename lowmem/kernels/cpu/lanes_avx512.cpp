// Primitives for AVX-512 (F, BW, VL, DQ, VPOPCNTDQ): sixteen lanes. See passes.cpp for what they mean.
constexpr int LANES = 16;
typedef uint32_t Words __attribute__((vector_size(4 * LANES)));
typedef uint64_t Wide __attribute__((vector_size(4 * LANES)));
typedef int32_t Ints __attribute__((vector_size(4 * LANES)));
typedef float Floats __attribute__((vector_size(4 * LANES)));

static inline Wide product(Wide a, uint32_t factor) {
    return (Wide)_mm512_mul_epu32((__m512i)a, _mm512_set1_epi64(factor));
}

static inline Words merge(Wide even, Wide odd) {
    return (Words)_mm512_mask_blend_epi32(0xAAAA, (__m512i)even, (__m512i)(odd << 32));
}

static inline Words coins(Words x) {
    Words all = (Words)_mm512_popcnt_epi32((__m512i)x), upper = (Words)_mm512_popcnt_epi32((__m512i)(x & ~15u));
    return all + upper + upper;
}

static inline Words load16(const uint16_t *from) {
    return (Words)_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)from));
}

static inline void store16(uint16_t *to, Words words) {
    _mm256_storeu_si256((__m256i *)to, _mm512_cvtepi32_epi16((__m512i)words));
}

static inline Floats load_half(const uint16_t *from) {
    return (Floats)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)from));
}

static inline void store_half(uint16_t *to, Floats x) {
    _mm256_storeu_si256((__m256i *)to, _mm512_cvtps_ph((__m512)x, _MM_FROUND_TO_NEAREST_INT));
}
