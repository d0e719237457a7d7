// Primitives for AVX2 with F16C: eight lanes. See passes.cpp for what they mean.
constexpr int LANES = 8;
typedef uint32_t Words __attribute__((vector_size(4 * LANES)));
typedef uint64_t Wide __attribute__((vector_size(4 * LANES)));
typedef int32_t Ints __attribute__((vector_size(4 * LANES)));
typedef float Floats __attribute__((vector_size(4 * LANES)));

static inline Wide product(Wide a, uint32_t factor) {
    return (Wide)_mm256_mul_epu32((__m256i)a, _mm256_set1_epi64x(factor));
}

static inline Words merge(Wide even, Wide odd) {
    return (Words)_mm256_blend_epi32((__m256i)even, (__m256i)(odd << 32), 0xAA);
}

// Three times the popcount by nibbles, less twice that of the lowest nibble.
static inline Words coins(Words word) {
    const __m256i triple = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 3, 3, 6, 3, 6, 6, 9, 3, 6, 6, 9, 6, 9, 9, 12));
    const __m256i twice = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 2, 2, 4, 2, 4, 4, 6, 2, 4, 4, 6, 4, 6, 6, 8));
    const __m256i nibbles = _mm256_set1_epi8(15), ones = _mm256_set1_epi8(1), pairs = _mm256_set1_epi16(1);
    __m256i x = (__m256i)word;
    __m256i low = _mm256_shuffle_epi8(triple, _mm256_and_si256(x, nibbles));
    __m256i high = _mm256_shuffle_epi8(triple, _mm256_and_si256(_mm256_srli_epi32(x, 4), nibbles));
    __m256i sum = _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_add_epi8(low, high), ones), pairs);
    __m256i excess = _mm256_shuffle_epi8(twice, _mm256_and_si256(x, _mm256_set1_epi32(15)));
    return (Words)_mm256_sub_epi32(sum, excess);
}

static inline Words load16(const uint16_t *from) {
    return (Words)_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)from));
}

static inline void store16(uint16_t *to, Words words) {
    __m256i x = (__m256i)words;
    _mm_storeu_si128((__m128i *)to, _mm_packus_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1)));
}

static inline Floats load_half(const uint16_t *from) {
    return (Floats)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)from));
}

static inline void store_half(uint16_t *to, Floats x) {
    _mm_storeu_si128((__m128i *)to, _mm256_cvtps_ph((__m256)x, _MM_FROUND_TO_NEAREST_INT));
}
