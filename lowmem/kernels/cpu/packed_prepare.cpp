// Activations made ready for the products: rounded to int8 and put in the order of a kind. Plain loops that the
// compiler turns into vectors; included once for each level.

// A block with a NaN or an infinity gets the scale NaN: it must not look like a small number.
static void round_block(const float *x, int8_t *codes, float *scale) {
    int32_t bits[BLOCK], top = 0;
    memcpy(bits, x, sizeof bits);
    for (int j = 0; j < BLOCK; j++) {
        int32_t absolute = bits[j] & 0x7FFFFFFF;  // in the order of |x|
        top = top > absolute ? top : absolute;
    }
    float largest;
    memcpy(&largest, &top, sizeof largest);
    if (top >= 0x7F800000 || !(largest > 1e-35f)) {  // below, 127 / largest would overflow
        memset(codes, 0, BLOCK);
        *scale = top >= 0x7F800000 ? NAN : 0;
        return;
    }
    float inverse = 127 / largest;
    const float rounding = 12582912;  // 1.5 * 2^23: adding it rounds to whole numbers, ties to even
    for (int j = 0; j < BLOCK; j++) codes[j] = int8_t(int32_t(x[j] * inverse + rounding - rounding));
    *scale = largest / 127;
}

// Places the codes of one block, its scale and its offsets, and adds to the constants.
static void place_block(Ready &to, const Packed &w, const int8_t *order, int64_t token, int64_t block, const float *x) {
    int8_t codes[BLOCK];
    float scale;
    round_block(x, codes, &scale);
    int64_t chunk = 2 * token * to.steps + block / 2;
    int h = int(block % 2), sum = 0;
    int8_t *placed = to.codes.data() + chunk * CHUNK;
    for (int j = 0; j < BLOCK; j++) sum += codes[j];
    if (lattice(w.kind))
        for (int j = 0; j < BLOCK; j++) placed[16 * h + order[j]] = codes[j];
    else
        for (int k = 0; k < 4; k++) memcpy(placed + 32 * k + 16 * h, codes + 16 * k, 16);
    for (int lane = 0; lane < 4; lane++) to.scales[chunk * 8 + 4 * h + lane] = scale;
    for (int p = 0; p < 2; p++) {
        float start = -float(sum * offset(w, p)) / float(factor(w.kind, p));
        to.start[p][chunk * 8 + 4 * h] = start;
        to.tokens[token].constant[p] += start * scale;
    }
}

static void prepare(const Packed &w, Ready &to, const float *x, int64_t count, bool exact) {
    int8_t order[BLOCK];
    for (int j = 0; j < BLOCK; j++) order[j] = int8_t(place(w.kind, 0, j));
    to.resize(w.n, count, exact);
    for (int64_t token = 0; token < count; token++)
        for (int64_t block = 0; block < 4 * to.steps; block++) {
            float padded[BLOCK] = {};
            int64_t col = block * BLOCK, here = w.n - col < BLOCK ? w.n - col : BLOCK;
            if (here > 0) memcpy(padded, x + token * w.n + col, sizeof(float) * size_t(here));
            if (!exact) place_block(to, w, order, token, block, padded);
            else
                for (int j = 0; j < BLOCK; j++)
                    to.exact[size_t(token * to.steps * STEP + block / 2 * CHUNK + 16 * (block % 2) + order[j])] = padded[j];
        }
}
