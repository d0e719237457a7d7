// The products with 256-bit registers, compiled for AVX2 and once more for AVX-512 VNNI, where a sum of four products
// is one instruction. Included inside a namespace and target that define `VNNI`.

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

// Four table rows of eight bytes: two of the first block, two of the second.
INLINE __m256i four_rows(const uint8_t *table, const uint8_t *first, const uint8_t *second) {
    const uint8_t *a = table + 8 * first[0], *b = table + 8 * first[1];
    const uint8_t *c = table + 8 * second[0], *d = table + 8 * second[1];
    __m128 low = _mm_loadh_pi(_mm_castsi128_ps(_mm_loadl_epi64((const __m128i *)a)), (const __m64 *)b);
    __m128 high = _mm_loadh_pi(_mm_castsi128_ps(_mm_loadl_epi64((const __m128i *)c)), (const __m64 *)d);
    return _mm256_castps_si256(_mm256_insertf128_ps(_mm256_castps128_ps256(low), high, 1));
}

// Sixteen e8 vectors as u = pattern / 4 + 15.5, mirrored around 15.5 where negative: 13..18. Bit 7 of a sign byte is
// the shift, so the eighth sign, the parity of the others, is put in its place first.
INLINE void decode_e8(const uint8_t *data, const uint8_t *patterns, __m256i *u) {
    const __m256i nibble = _mm256_set1_epi8(15), bits = _mm256_set1_epi64x(int64_t(0x8040201008040201ull));
    const __m256i even = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, -128, -128, 0, -128, 0, 0, -128, -128, 0, 0, -128, 0, -128, -128, 0));
    const __m256i three = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, -128, -128, 0, -128, 0, 0, -128, 0, -128, -128, 0, -128, 0, 0, -128));
    __m256i signs = load(data);
    __m256i parity = _mm256_xor_si256(_mm256_shuffle_epi8(even, _mm256_and_si256(signs, nibble)),
                                      _mm256_shuffle_epi8(three, _mm256_and_si256(_mm256_srli_epi16(signs, 4), nibble)));
    signs = _mm256_or_si256(_mm256_and_si256(signs, _mm256_set1_epi8(127)), parity);
    __m256i from = _mm256_broadcastsi128_si256(_mm_setr_epi8(8, 8, 8, 8, 8, 8, 8, 8, 9, 9, 9, 9, 9, 9, 9, 9));
    UNROLL for (int k = 0; k < 4; k++) {
        __m256i own = _mm256_shuffle_epi8(signs, _mm256_add_epi8(from, _mm256_set1_epi8(char(2 * k))));
        __m256i flip = _mm256_and_si256(set_bits(own, bits), _mm256_set1_epi8(31));
        u[k] = _mm256_xor_si256(four_rows(patterns, data + 2 * k, data + 16 + 2 * k), flip);
    }
}

// Levels plus the offset as bytes (int8: the levels themselves).
template <int KIND> INLINE void decode(const Packed &w, const Place &at, __m256i *u) {
    const uint8_t *data = at.data[0];
    if (KIND == S2 || KIND == S3) {
        const __m256i table = both(w.table), mask = _mm256_set1_epi8(3);
        __m256i codes = load(data), high = codes;
        if (KIND == S3) {
            const __m256i spread = _mm256_setr_epi8(0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13,
                                                    14, 15, 8, 9, 10, 11, 12, 13, 14, 15);
            high = _mm256_shuffle_epi8(both(at.data[1]), spread);
        }
        UNROLL for (int k = 0; k < 4; k++) {
            __m256i code = _mm256_and_si256(_mm256_srli_epi16(codes, 2 * k), mask);
            if (KIND == S3) {
                const int64_t low = 0x0101010101010101;
                const __m256i bit = _mm256_setr_epi64x(low << 2 * k, low << (2 * k + 1), low << 2 * k, low << (2 * k + 1));
                code = _mm256_or_si256(code, _mm256_and_si256(set_bits(high, bit), _mm256_set1_epi8(4)));
            }
            u[k] = _mm256_shuffle_epi8(table, code);
        }
    } else if (KIND == S4 || KIND == INT4) {
        const __m256i table = both(w.table), mask = _mm256_set1_epi8(15);
        UNROLL for (int q = 0; q < 2; q++) {
            __m256i codes = halves(data + 16 * q, data + 32 + 16 * q);
            u[q] = _mm256_shuffle_epi8(table, _mm256_and_si256(codes, mask));
            u[2 + q] = _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16(codes, 4), mask));
        }
    } else if (KIND == INT8) {
        UNROLL for (int k = 0; k < 4; k++)
            u[k] = _mm256_xor_si256(halves(data + 16 * k, data + 64 + 16 * k), _mm256_set1_epi8(-128));
    } else {
        decode_e8(data, w.patterns, u);
    }
}

template <int KIND> INLINE void decode_residual(const Packed &w, const Place &at, __m256i *u) {
    if (KIND == NESTED) return decode_e8(at.data[1], w.patterns, u);
    const uint8_t *data = at.data[1];
    UNROLL for (int k = 0; k < 4; k++) u[k] = four_rows(w.residual, data + 2 * k, data + 8 + 2 * k);
}

// Sums of four neighbouring products. SMALL: four sums of two products fit 16 bits.
template <bool SMALL> INLINE __m256i products(const __m256i *u, const int8_t *x) {
#if VNNI
    __m256i sum = _mm256_setzero_si256();
    UNROLL for (int k = 0; k < 4; k++) sum = _mm256_dpbusd_epi32(sum, u[k], load(x + 32 * k));
    return sum;
#else
    const __m256i ones = _mm256_set1_epi16(1);
    __m256i pair[4];
    UNROLL for (int k = 0; k < 4; k++) pair[k] = _mm256_maddubs_epi16(u[k], load(x + 32 * k));
    if (SMALL)
        return _mm256_madd_epi16(
            _mm256_add_epi16(_mm256_add_epi16(pair[0], pair[1]), _mm256_add_epi16(pair[2], pair[3])), ones);
    __m256i sum = _mm256_madd_epi16(pair[0], ones);
    UNROLL for (int k = 1; k < 4; k++) sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pair[k], ones));
    return sum;
#endif
}

INLINE __m256i signed_products(const __m256i *level, const int8_t *x) {
    __m256i sum = _mm256_setzero_si256();
    UNROLL for (int k = 0; k < 4; k++) {
        __m256i pair = _mm256_maddubs_epi16(_mm256_abs_epi8(level[k]), _mm256_sign_epi8(load(x + 32 * k), level[k]));
        sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pair, _mm256_set1_epi16(1)));
    }
    return sum;
}

// 4 sum(u x) plus the shift of every vector times the sum of its activations.
INLINE __m256i e8_products(const __m256i *u, const uint8_t *data, const Token &token, int64_t chunk) {
    __m256i shift = _mm256_or_si256(load(data), _mm256_set1_epi8(1));
    __m256i eights = _mm256_sign_epi8(load(token.eights[0] + 32 * chunk), shift);
    __m256i ones = _mm256_sign_epi8(load(token.eights[1] + 32 * chunk), shift);
    __m256i pairs = _mm256_add_epi16(_mm256_maddubs_epi16(_mm256_set1_epi8(8), eights),
                                     _mm256_maddubs_epi16(_mm256_set1_epi8(1), ones));
    __m256i sum = _mm256_slli_epi32(products<true>(u, token.codes + CHUNK * chunk), 2);
    return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}

template <int KIND, bool SMALL>
INLINE __m256i integers(const __m256i *u, const Place &at, const Token &token, int64_t chunk) {
    if (KIND == INT8) return signed_products(u, token.codes + CHUNK * chunk);
    __m256i sum = KIND >= E8 ? e8_products(u, at.data[0], token, chunk) : products<SMALL>(u, token.codes + CHUNK * chunk);
    return _mm256_add_epi32(sum, load(token.start[0] + 8 * chunk));
}

template <int KIND>
INLINE __m256i residual_integers(const __m256i *u, const Place &at, const Token &token, int64_t chunk) {
    __m256i sum = KIND == NESTED ? e8_products(u, at.data[1], token, chunk)
                                 : products<true>(u, token.codes + CHUNK * chunk);
    return _mm256_add_epi32(sum, load(token.start[1] + 8 * chunk));
}

INLINE void e8_levels(__m256i *u, const uint8_t *data) {
    __m256i signs = load(data), zero = _mm256_setzero_si256();
    UNROLL for (int k = 0; k < 4; k++) {
        __m256i from = _mm256_broadcastsi128_si256(_mm_setr_epi8(8, 8, 8, 8, 8, 8, 8, 8, 9, 9, 9, 9, 9, 9, 9, 9));
        __m256i own = _mm256_shuffle_epi8(signs, _mm256_add_epi8(from, _mm256_set1_epi8(char(2 * k))));
        __m256i minus = _mm256_cmpgt_epi8(zero, own);
        u[k] = _mm256_add_epi8(_mm256_slli_epi16(u[k], 2), _mm256_set1_epi8(char(1 - OFFSET_E8)));
        u[k] = _mm256_add_epi8(u[k], _mm256_add_epi8(minus, minus));
    }
}

// The levels as signed bytes, from what `decode` gave.
template <int KIND> INLINE void to_levels(const Packed &w, const Place &at, __m256i *u) {
    if (KIND >= E8) return e8_levels(u, at.data[0]);
    UNROLL for (int k = 0; k < 4 && KIND != INT8; k++) u[k] = _mm256_sub_epi8(u[k], _mm256_set1_epi8(char(w.offset)));
}

INLINE __m256 eight(const int8_t *from) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)from)));
}

// fp32 activations: `scale` holds the first block's factor in its lower half and the second's in its upper.
template <int KIND>
INLINE void exact_chunk(const Packed &w, const Place &at, __m256i *u, __m256i *v, const Token *tokens, int count,
                               int64_t chunk, __m256 scale, __m256 *sums) {
    alignas(32) int8_t first[CHUNK], second[CHUNK];
    to_levels<KIND>(w, at, u);
    memcpy(first, u, sizeof first);
    if (KIND >= E8R) {
        if (KIND == NESTED) e8_levels(v, at.data[1]);
        UNROLL for (int k = 0; k < 4 && KIND == E8R; k++) v[k] = _mm256_sub_epi8(v[k], _mm256_set1_epi8(OFFSET_E8R));
        memcpy(second, v, sizeof second);
    }
    __m256 part[2] = {_mm256_permute2f128_ps(scale, scale, 0x00), _mm256_permute2f128_ps(scale, scale, 0x11)};
    UNROLL for (int t = 0; t < count; t++) {
        __m256 sum[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
        UNROLL for (int j = 0; j < 16; j++) {
            __m256 level = eight(first + 8 * j);
            if (KIND >= E8R) level = _mm256_fmadd_ps(eight(second + 8 * j), _mm256_set1_ps(w.residual_scale), level);
            sum[j / 2 % 2] = _mm256_fmadd_ps(level, _mm256_loadu_ps(tokens[t].exact + CHUNK * chunk + 8 * j), sum[j / 2 % 2]);
        }
        sums[t] = _mm256_fmadd_ps(sum[0], part[0], _mm256_fmadd_ps(sum[1], part[1], sums[t]));
    }
}

INLINE __m256 group_scales(const Packed &w, const uint16_t *scales, int64_t chunk) {
    __m128 low = _mm_set1_ps(_cvtsh_ss(scales[w.groups[2 * chunk]]));
    return _mm256_set_m128(_mm_set1_ps(_cvtsh_ss(scales[w.groups[2 * chunk + 1]])), low);
}

template <int KIND, bool SMALL, int TOKENS, bool EXACT>
INLINE void chunk_into(const Packed &w, const Place &at, const Token *tokens, int64_t chunk,
                              const uint16_t *scales, __m256 *sums) {
    __m256i u[4], v[4];
    decode<KIND>(w, at, u);
    if (KIND >= E8R) decode_residual<KIND>(w, at, v);
    __m256 group = w.group ? group_scales(w, scales, chunk) : _mm256_set1_ps(1);
    if (EXACT) return exact_chunk<KIND>(w, at, u, v, tokens, TOKENS, chunk, group, sums);
    UNROLL for (int t = 0; t < TOKENS; t++) {
        __m256 sum = _mm256_cvtepi32_ps(integers<KIND, SMALL>(u, at, tokens[t], chunk));
        if (KIND >= E8R) {
            __m256 more = _mm256_cvtepi32_ps(residual_integers<KIND>(v, at, tokens[t], chunk));
            sum = _mm256_fmadd_ps(more, _mm256_set1_ps(w.residual_scale), sum);
        }
        __m256 scale = _mm256_loadu_ps(tokens[t].scales + 8 * chunk);
        if (w.group) scale = _mm256_mul_ps(scale, group);
        sums[t] = _mm256_fmadd_ps(sum, scale, sums[t]);
    }
}

INLINE float total(__m256 x) {
    __m128 sum = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
    return _mm_cvtss_f32(_mm_add_ss(sum, _mm_movehdup_ps(sum)));
}

// The last chunk of an odd number of blocks: its second block is zeros, which meet activations of zero.
struct Tail {
    uint8_t bytes[2][2 * BLOCK];
    Place place;
    Tail(const Place &from, int kind) : bytes{}, place{{bytes[0], bytes[1]}} {
        UNROLL for (int p = 0; p < 2; p++)
            if (int size = plane_bytes(kind, p)) memcpy(bytes[p], from.data[p], size);
    }
};

template <int KIND, bool SMALL, int TOKENS, bool EXACT>
static void row_products(const Packed &w, const Token *tokens, float *out, int64_t first, int64_t last) {
    constexpr int AHEAD = 1024;  // bytes
    int64_t blocks = (w.n + BLOCK - 1) / BLOCK, groups = w.group ? (w.n + w.group - 1) / w.group : 1;
    int size[2] = {plane_bytes(KIND, 0), plane_bytes(KIND, 1)};
    for (int64_t row = first; row < last; row++) {
        Place at = {{w.planes[0] + row * blocks * size[0], w.planes[1] + row * blocks * size[1]}};
        const uint16_t *scales = w.scales + row * groups;
        __m256 sums[TOKENS];
        UNROLL for (int t = 0; t < TOKENS; t++) sums[t] = _mm256_setzero_ps();
        for (int64_t chunk = 0; chunk < blocks / 2; chunk++) {
            _mm_prefetch((const char *)at.data[0] + AHEAD, _MM_HINT_T0);
            chunk_into<KIND, SMALL, TOKENS, EXACT>(w, at, tokens, chunk, scales, sums);
            UNROLL for (int p = 0; p < 2; p++) at.data[p] += 2 * size[p];
        }
        if (blocks % 2) {
            Tail tail(at, KIND);
            chunk_into<KIND, SMALL, TOKENS, EXACT>(w, tail.place, tokens, blocks / 2, scales, sums);
        }
        float scale = w.gain * (w.group ? 1.0f : half_to_float(scales[0]));
        UNROLL for (int t = 0; t < TOKENS; t++) out[t * w.m + row] = total(sums[t]) * scale;
    }
}

template <int KIND, bool SMALL, bool EXACT>
static void by_tokens(const Packed &w, const Token *tokens, int count, float *out, int64_t first, int64_t last) {
    int t = 0;
    for (; t + 4 <= count; t += 4) row_products<KIND, SMALL, 4, EXACT>(w, tokens + t, out + t * w.m, first, last);
    for (; t < count; t++) row_products<KIND, SMALL, 1, EXACT>(w, tokens + t, out + t * w.m, first, last);
}

template <int KIND>
static void of_kind(const Packed &w, const Token *tokens, int count, bool exact, float *out, int64_t first, int64_t last) {
    int largest = 0;
    for (int i = 0; i < 16 && KIND <= INT4; i++) largest = w.table[i] > largest ? w.table[i] : largest;
    if (exact) return by_tokens<KIND, false, true>(w, tokens, count, out, first, last);
    if (KIND <= INT4 && 8 * 127 * largest <= 32767) return by_tokens<KIND, true, false>(w, tokens, count, out, first, last);
    by_tokens<KIND, false, false>(w, tokens, count, out, first, last);
}

static void rows(const Packed &w, const Token *tokens, int count, bool exact, float *out, int64_t first, int64_t last) {
    switch (w.kind) {
        case S2: return of_kind<S2>(w, tokens, count, exact, out, first, last);
        case S3: return of_kind<S3>(w, tokens, count, exact, out, first, last);
        case S4: return of_kind<S4>(w, tokens, count, exact, out, first, last);
        case INT4: return of_kind<INT4>(w, tokens, count, exact, out, first, last);
        case INT8: return of_kind<INT8>(w, tokens, count, exact, out, first, last);
        case E8: return of_kind<E8>(w, tokens, count, exact, out, first, last);
        case E8R: return of_kind<E8R>(w, tokens, count, exact, out, first, last);
        case NESTED: return of_kind<NESTED>(w, tokens, count, exact, out, first, last);
    }
}
