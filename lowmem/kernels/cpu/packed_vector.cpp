// The products with 256-bit registers, compiled for AVX2 and once more for AVX-512 VNNI, where a sum of four products
// is one instruction. Included inside a namespace and target that define `VNNI`.
#include "packed_decode.cpp"

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

INLINE __m256 eight(const int8_t *from) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)from)));
}

// fp32 activations. The levels of a step, of both planes where there are two, in `place` order.
template <int KIND> static void exact_levels(const Packed &w, const Place &at, float *levels) {
    __m256i u[2][4], v[2][4];
    decode<KIND>(w, at, u);
    if (two_levels(KIND)) decode_residual<KIND>(w, at, v);
    alignas(32) int8_t first[STEP], second[STEP];
    memcpy(first, u, sizeof first);
    if (two_levels(KIND)) memcpy(second, v, sizeof second);
    const __m256 times = _mm256_set1_ps(factor(KIND, 0)), under = _mm256_set1_ps(-float(offset(w, 0)));
    const __m256 more = _mm256_set1_ps(factor(KIND, 1)), below = _mm256_set1_ps(-float(offset(w, 1)));
    for (int j = 0; j < STEP; j += 8) {
        __m256 level = _mm256_fmadd_ps(eight(first + j), times, under);
        if (two_levels(KIND))
            level = _mm256_fmadd_ps(_mm256_fmadd_ps(eight(second + j), more, below), _mm256_set1_ps(w.residual_scale), level);
        _mm256_storeu_ps(levels + j, level);
    }
}

static void exact_chunk(const float *levels, const float *x, __m256 scale, float *sums) {
    __m256 part[2] = {_mm256_permute2f128_ps(scale, scale, 0x00), _mm256_permute2f128_ps(scale, scale, 0x11)};
    __m256 sum[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
    for (int j = 0; j < CHUNK; j += 32)
        UNROLL for (int k = 0; k < 4; k++)
            sum[k / 2] = _mm256_fmadd_ps(_mm256_loadu_ps(levels + j + 8 * k), _mm256_loadu_ps(x + j + 8 * k), sum[k / 2]);
    __m256 before = _mm256_loadu_ps(sums);
    _mm256_storeu_ps(sums, _mm256_fmadd_ps(sum[0], part[0], _mm256_fmadd_ps(sum[1], part[1], before)));
}

INLINE __m256 group_scales(const Packed &w, const uint16_t *scales, int64_t chunk) {
    __m128 low = _mm_set1_ps(_cvtsh_ss(scales[w.groups[2 * chunk]]));
    return _mm256_set_m128(_mm_set1_ps(_cvtsh_ss(scales[w.groups[2 * chunk + 1]])), low);
}

// Sums of a chunk over its factor of plane 0, times the scales of activations; `group` is used where GROUPED.
template <int KIND, bool GROUPED>
INLINE __m256 int8_chunk(const Packed &w, const __m256i *u, const __m256i *v, const Token &token, int64_t chunk,
                         __m256 group, __m256 sums) {
    const int8_t *x = token.codes + CHUNK * chunk;
    __m256 sum = _mm256_cvtepi32_ps(KIND == INT8 ? signed_products(u, x) : products<small(KIND)>(u, x));
    if (GROUPED) sum = _mm256_add_ps(sum, _mm256_loadu_ps(token.start[0] + 8 * chunk));
    if (two_levels(KIND)) {
        const __m256 weight = _mm256_set1_ps(w.residual_scale * float(factor(KIND, 1)) / float(factor(KIND, 0)));
        __m256 more = _mm256_cvtepi32_ps(products<true>(v, x));
        if (GROUPED) more = _mm256_add_ps(more, _mm256_loadu_ps(token.start[1] + 8 * chunk));
        sum = _mm256_fmadd_ps(more, weight, sum);
    }
    __m256 scale = _mm256_loadu_ps(token.scales + 8 * chunk);
    return _mm256_fmadd_ps(sum, GROUPED ? _mm256_mul_ps(scale, group) : scale, sums);
}

template <int KIND, bool GROUPED, int TOKENS>
INLINE void step_into(const Packed &w, const Place &at, const Token *tokens, int64_t step, const uint16_t *scales,
                      __m256 *sums) {
    __m256i u[2][4], v[2][4];
    decode<KIND>(w, at, u);
    if (two_levels(KIND)) decode_residual<KIND>(w, at, v);
    UNROLL for (int half = 0; half < 2; half++) {
        int64_t chunk = 2 * step + half;
        __m256 group = GROUPED ? group_scales(w, scales, chunk) : _mm256_set1_ps(1);
        UNROLL for (int t = 0; t < TOKENS; t++)
            sums[t] = int8_chunk<KIND, GROUPED>(w, u[half], v[half], tokens[t], chunk, group, sums[t]);
    }
}

INLINE float total(__m256 x) {
    __m128 sum = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
    return _mm_cvtss_f32(_mm_add_ss(sum, _mm_movehdup_ps(sum)));
}

// The last step of a row whose blocks are no multiple of four: the missing ones are zeros, which meet activations of
// zero.
struct Tail {
    uint8_t bytes[2][4 * BLOCK];
    Place place;
    Tail(const Place &from, int kind, int64_t blocks) : bytes{}, place{{bytes[0], bytes[1]}} {
        for (int p = 0; p < 2; p++)
            if (size_t size = size_t(plane_bytes(kind, p) * blocks)) memcpy(bytes[p], from.data[p], size);
    }
};

// What the sums of all rows lack: the offsets, except where they were added with the scales of their groups.
template <int KIND, bool GROUPED> INLINE float finished(const Packed &w, const Token &token, __m256 sums) {
    float sum = total(sums);
    if (!GROUPED) {
        sum += token.constant[0];
        if (two_levels(KIND)) sum += token.constant[1] * w.residual_scale * float(factor(KIND, 1)) / float(factor(KIND, 0));
    }
    return sum * float(factor(KIND, 0));
}

// The blocks of a row from its first to its last whole step, then `Tail`.
struct Row {
    Place at;
    const uint16_t *scales;
    float scale;
    Row(const Packed &w, int kind, int64_t blocks, int64_t row) {
        int64_t groups = w.group ? (w.n + w.group - 1) / w.group : 1;
        for (int p = 0; p < 2; p++) at.data[p] = w.planes[p] + row * blocks * plane_bytes(kind, p);
        scales = w.scales + row * groups;
        scale = w.gain * (w.group ? 1.0f : half_to_float(scales[0]));
    }
};

template <int KIND, bool GROUPED, int TOKENS>
static void row_products(const Packed &w, const Token *tokens, float *out, int64_t first, int64_t last) {
    constexpr int AHEAD = 1024;  // bytes
    constexpr int size[2] = {4 * plane_bytes(KIND, 0), 4 * plane_bytes(KIND, 1)};
    int64_t blocks = (w.n + BLOCK - 1) / BLOCK, steps = blocks / 4;
    for (int64_t index = first; index < last; index++) {
        Row row(w, KIND, blocks, index);
        __m256 sums[TOKENS];
        UNROLL for (int t = 0; t < TOKENS; t++) sums[t] = _mm256_setzero_ps();
        for (int64_t step = 0; step < steps; step++) {
            UNROLL for (int line = 0; line < size[0]; line += 64)
                _mm_prefetch((const char *)row.at.data[0] + AHEAD + line, _MM_HINT_T0);
            step_into<KIND, GROUPED, TOKENS>(w, row.at, tokens, step, row.scales, sums);
            UNROLL for (int p = 0; p < 2; p++) row.at.data[p] += size[p];
        }
        if (blocks % 4) {
            Tail tail(row.at, KIND, blocks % 4);
            step_into<KIND, GROUPED, TOKENS>(w, tail.place, tokens, steps, row.scales, sums);
        }
        UNROLL for (int t = 0; t < TOKENS; t++)
            out[t * w.m + index] = finished<KIND, GROUPED>(w, tokens[t], sums[t]) * row.scale;
    }
}

static void exact_rows(const Packed &w, void (*read)(const Packed &, const Place &, float *), const Token *tokens,
                       int count, float *out, int64_t first, int64_t last) {
    int64_t blocks = (w.n + BLOCK - 1) / BLOCK;
    alignas(32) float levels[STEP];
    for (int64_t index = first; index < last; index++) {
        Row row(w, w.kind, blocks, index);
        std::vector<float> sums(size_t(8 * count));
        for (int64_t step = 0; 4 * step < blocks; step++) {
            if (4 * step + 4 <= blocks) read(w, row.at, levels);
            else read(w, Tail(row.at, w.kind, blocks % 4).place, levels);
            for (int p = 0; p < 2; p++) row.at.data[p] += 4 * plane_bytes(w.kind, p);
            for (int half = 0; half < 2; half++) {
                __m256 scale = w.group ? group_scales(w, row.scales, 2 * step + half) : _mm256_set1_ps(1);
                for (int t = 0; t < count; t++)
                    exact_chunk(levels + CHUNK * half, tokens[t].exact + STEP * step + CHUNK * half, scale, &sums[size_t(8 * t)]);
            }
        }
        for (int t = 0; t < count; t++) out[t * w.m + index] = total(_mm256_loadu_ps(&sums[size_t(8 * t)])) * row.scale;
    }
}

template <int KIND, bool GROUPED>
static void by_tokens(const Packed &w, const Token *tokens, int count, float *out, int64_t first, int64_t last) {
    int t = 0;
    for (; t + 4 <= count; t += 4) row_products<KIND, GROUPED, 4>(w, tokens + t, out + t * w.m, first, last);
    for (; t < count; t++) row_products<KIND, GROUPED, 1>(w, tokens + t, out + t * w.m, first, last);
}

template <int KIND>
static void of_kind(const Packed &w, const Token *tokens, int count, bool exact, float *out, int64_t first, int64_t last) {
    if (exact) return exact_rows(w, exact_levels<KIND>, tokens, count, out, first, last);
    if (w.group) return by_tokens<KIND, true>(w, tokens, count, out, first, last);
    by_tokens<KIND, false>(w, tokens, count, out, first, last);
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
