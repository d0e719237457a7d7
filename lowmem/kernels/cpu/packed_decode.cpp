// From the bytes of a step to small unsigned numbers in 256-bit registers: u[chunk][k], in the order of `place`.
// Included inside a namespace and target.

INLINE __m256i load(const void *from) { return _mm256_loadu_si256((const __m256i *)from); }

INLINE __m256i halves(const uint8_t *low, const uint8_t *high) {
    return _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128((const __m128i *)low)),
                                   _mm_loadu_si128((const __m128i *)high), 1);
}

INLINE __m256i both(const uint8_t *table) {
    return _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)table));
}

INLINE __m256i set_bits(__m256i from, __m256i bits) {
    return _mm256_cmpeq_epi8(_mm256_and_si256(from, bits), bits);
}

// 64 two-bit codes a block. A byte shuffle looks at four bits: two codes, so a table for the lower code and one for the
// upper code spare half of the shifts and masks.
INLINE void decode_s2(const Packed &w, const uint8_t *data, __m256i *u) {
    const __m256i nibble = _mm256_set1_epi8(15), lower = both(w.table), upper = both(w.table + 16);
    __m256i codes = load(data), low = _mm256_and_si256(codes, nibble);
    __m256i high = _mm256_and_si256(_mm256_srli_epi16(codes, 4), nibble);
    u[0] = _mm256_shuffle_epi8(lower, low), u[1] = _mm256_shuffle_epi8(upper, low);
    u[2] = _mm256_shuffle_epi8(lower, high), u[3] = _mm256_shuffle_epi8(upper, high);
}

INLINE void decode_s3(const Packed &w, const uint8_t *data, const uint8_t *third, __m256i *u) {
    const __m256i table = both(w.table), mask = _mm256_set1_epi8(3);
    const __m256i spread = _mm256_setr_epi8(0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15,
                                            8, 9, 10, 11, 12, 13, 14, 15);
    __m256i codes = load(data), high = _mm256_shuffle_epi8(both(third), spread);
    UNROLL for (int k = 0; k < 4; k++) {
        const int64_t low = 0x0101010101010101;
        const __m256i bit = _mm256_setr_epi64x(low << 2 * k, low << (2 * k + 1), low << 2 * k, low << (2 * k + 1));
        __m256i code = _mm256_and_si256(_mm256_srli_epi16(codes, 2 * k), mask);
        u[k] = _mm256_shuffle_epi8(
            table, _mm256_or_si256(code, _mm256_and_si256(set_bits(high, bit), _mm256_set1_epi8(4))));
    }
}

INLINE void decode_s4(const Packed &w, const uint8_t *data, __m256i *u) {
    const __m256i table = both(w.table), mask = _mm256_set1_epi8(15);
    UNROLL for (int q = 0; q < 2; q++) {
        __m256i codes = halves(data + 16 * q, data + 32 + 16 * q);
        u[q] = _mm256_shuffle_epi8(table, _mm256_and_si256(codes, mask));
        u[2 + q] = _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16(codes, 4), mask));
    }
}

// Four table rows of eight nibbles. A blend reads its row where that lane is, so nothing has to be moved.
INLINE __m128i four_rows(const uint32_t *table, const uint8_t *index) {
    __m128i rows = _mm_loadu_si128((const __m128i *)(table + index[0]));
    rows = _mm_blend_epi32(rows, _mm_loadu_si128((const __m128i *)(table + index[1] - 1)), 2);
    rows = _mm_blend_epi32(rows, _mm_loadu_si128((const __m128i *)(table + index[2] - 2)), 4);
    return _mm_blend_epi32(rows, _mm_loadu_si128((const __m128i *)(table + index[3] - 3)), 8);
}

INLINE __m256i eight_rows(const uint32_t *table, const uint8_t *first, const uint8_t *second) {
    return _mm256_inserti128_si256(_mm256_castsi128_si256(four_rows(table, first)), four_rows(table, second), 1);
}

INLINE void split_nibbles(__m256i nibbles, __m256i *u) {
    const __m256i nibble = _mm256_set1_epi8(15);
    u[0] = _mm256_and_si256(nibbles, nibble);
    u[1] = _mm256_and_si256(_mm256_srli_epi16(nibbles, 4), nibble);
}

// A level of e8 is 2 v - 15 with v = P / 2 + 8 for the shift +1: negating the pattern is v ^ 14 and the shift -1 is
// v ^ 1, so signs, the parity that gives the eighth sign, and shifts are one mask of nibbles, made from the sign bytes
// of a step by byte shuffles. Byte c of a vector holds entries 2 c and 2 c + 1.
struct SignTables {
    uint8_t low[2][16], high[2][16], parity[16], shift[16];
    constexpr SignTables() : low{}, high{}, parity{}, shift{} {
        for (int s = 0; s < 16; s++) {
            int odd_low = (s ^ s >> 1 ^ s >> 2 ^ s >> 3) & 1, odd_high = (s ^ s >> 1 ^ s >> 2) & 1;
            int moved = s & 8 ? 0x11 : 0;
            for (int c = 0; c < 2; c++) low[c][s] = uint8_t((s >> 2 * c & 1 ? 0x0E : 0) | (s >> (2 * c + 1) & 1 ? 0xE0 : 0));
            high[0][s] = uint8_t(low[0][s] ^ moved);
            high[1][s] = uint8_t((s & 4 ? 0x0E : 0) ^ (odd_high ? 0xE0 : 0) ^ moved);
            parity[s] = odd_low ? 0xE0 : 0;
            shift[s] = uint8_t(moved);
        }
    }
};
static constexpr SignTables SIGNS;

// Masks for the rows of a step: out[chunk][q] for vectors 4 q .. 4 q + 3 of both blocks.
INLINE void sign_masks(const uint8_t *data, __m256i out[2][2]) {
    const __m256i nibble = _mm256_set1_epi8(15);
    __m256i signs = _mm256_unpackhi_epi64(load(data), load(data + 32));
    __m256i low = _mm256_and_si256(signs, nibble), high = _mm256_and_si256(_mm256_srli_epi16(signs, 4), nibble);
    __m256i shift = _mm256_shuffle_epi8(both(SIGNS.shift), high);
    __m256i c0 = _mm256_xor_si256(_mm256_shuffle_epi8(both(SIGNS.low[0]), low), shift);
    __m256i c1 = _mm256_xor_si256(_mm256_shuffle_epi8(both(SIGNS.low[1]), low), shift);
    __m256i c2 = _mm256_shuffle_epi8(both(SIGNS.high[0]), high);
    __m256i c3 = _mm256_xor_si256(_mm256_shuffle_epi8(both(SIGNS.high[1]), high),
                                  _mm256_shuffle_epi8(both(SIGNS.parity), low));
    __m256i a = _mm256_unpacklo_epi8(c0, c1), b = _mm256_unpacklo_epi8(c2, c3);
    out[0][0] = _mm256_unpacklo_epi16(a, b), out[0][1] = _mm256_unpackhi_epi16(a, b);
    a = _mm256_unpackhi_epi8(c0, c1), b = _mm256_unpackhi_epi8(c2, c3);
    out[1][0] = _mm256_unpacklo_epi16(a, b), out[1][1] = _mm256_unpackhi_epi16(a, b);
}

INLINE void decode_e8(const Packed &w, const uint8_t *data, __m256i u[2][4]) {
    __m256i masks[2][2];
    sign_masks(data, masks);
    UNROLL for (int chunk = 0; chunk < 2; chunk++, data += 32)
        UNROLL for (int q = 0; q < 2; q++)
            split_nibbles(_mm256_xor_si256(eight_rows(w.patterns, data + 4 * q, data + 16 + 4 * q), masks[chunk][q]),
                          u[chunk] + 2 * q);
}

// Of level plane 0.
template <int KIND> INLINE void decode(const Packed &w, const Place &at, __m256i u[2][4]) {
    const uint8_t *data = at.data[0];
    if (lattice(KIND)) return decode_e8(w, data, u);
    UNROLL for (int chunk = 0; chunk < 2; chunk++, data += 2 * plane_bytes(KIND, 0)) {
        if (KIND == S2) decode_s2(w, data, u[chunk]);
        else if (KIND == S3) decode_s3(w, data, at.data[1] + 16 * chunk, u[chunk]);
        else if (KIND == INT8)
            UNROLL for (int k = 0; k < 4; k++)  // signed, as levels
                u[chunk][k] = _mm256_xor_si256(halves(data + 16 * k, data + 64 + 16 * k), _mm256_set1_epi8(-128));
        else decode_s4(w, data, u[chunk]);
    }
}

// Of level plane 1.
template <int KIND> INLINE void decode_residual(const Packed &w, const Place &at, __m256i u[2][4]) {
    const uint8_t *data = at.data[1];
    if (KIND == NESTED) return decode_e8(w, data, u);
    UNROLL for (int chunk = 0; chunk < 2; chunk++, data += 16)
        UNROLL for (int q = 0; q < 2; q++)
            split_nibbles(eight_rows(w.residual, data + 4 * q, data + 8 + 4 * q), u[chunk] + 2 * q);
}
