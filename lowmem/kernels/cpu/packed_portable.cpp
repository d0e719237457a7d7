// The products without vector instructions: the plain reading of lowmem/quant/codec.py, block by block.

static inline int pattern_level(const uint8_t *plane, const uint32_t *patterns, int j) {
    int index = plane[j / 8], sign = plane[8 + j / 8], entry = j % 8;
    bool negative = entry < 7 ? sign >> entry & 1 : __builtin_parity(sign & 0x7F);
    int pattern = 2 * (int(patterns[index] >> 4 * entry & 15) - 8);
    return (negative ? -pattern : pattern) + (sign & 0x80 ? -1 : 1);
}

// Level of weight j of a block, of level plane 0 or 1.
static inline int level_of(const Packed &w, const uint8_t *const *block, int plane, int j) {
    if (w.kind == E8R && plane == 1) return int(w.residual[block[1][j / 8]] >> 4 * (j % 8) & 15) - 4;
    if (lattice(w.kind)) return pattern_level(block[plane], w.patterns, j);
    if (w.kind == INT8) return block[0][j] - 128;
    int code;
    if (w.kind == S4 || w.kind == INT4) code = block[0][j % 32] >> 4 * (j / 32) & 15;
    else code = block[0][j % 16] >> 2 * (j / 16) & 3;
    if (w.kind == S3) code |= (block[1][j % 8] >> (j / 8) & 1) << 2;
    return w.table[code] - w.offset;
}

static inline float block_scale(const Packed &w, int64_t row, int64_t block) {
    int64_t groups = w.group ? (w.n + w.group - 1) / w.group : 1;
    int64_t group = w.group ? block * BLOCK / w.group : 0;
    return half_to_float(w.scales[row * groups + group]) * w.gain;
}

static float block_product(const Packed &w, const Token &token, int64_t block, const int *level, bool exact) {
    int64_t sum = 0;
    float exact_sum = 0;
    for (int j = 0; j < BLOCK; j++) {
        int64_t at = block / 2 * CHUNK + place(w.kind, int(block % 2), j);
        if (exact) exact_sum += token.exact[at] * float(level[j]);
        else sum += token.codes[at] * level[j];
    }
    return exact ? exact_sum : float(sum) * token.scales[block / 2 * 8 + block % 2 * 4];
}

static void rows(const Packed &w, const Token *tokens, int count, bool exact, float *out, int64_t first, int64_t last) {
    int64_t blocks = (w.n + BLOCK - 1) / BLOCK;
    for (int64_t row = first; row < last; row++) {
        for (int t = 0; t < count; t++) out[t * w.m + row] = 0;
        for (int64_t block = 0; block < blocks; block++) {
            const uint8_t *data[2];
            for (int p = 0; p < 2; p++) data[p] = w.planes[p] + (row * blocks + block) * plane_bytes(w.kind, p);
            float scale = block_scale(w, row, block);
            for (int plane = 0; plane < (two_levels(w.kind) ? 2 : 1); plane++) {
                int level[BLOCK];
                for (int j = 0; j < BLOCK; j++) level[j] = level_of(w, data, plane, j);
                float weight = plane ? w.residual_scale * scale : scale;
                for (int t = 0; t < count; t++)
                    out[t * w.m + row] += block_product(w, tokens[t], block, level, exact) * weight;
            }
        }
    }
}
