// Rotations of rows: stages of small matrices. Plain loops over neighbours that the compiler turns into vectors;
// included once for each level. All levels give the same bits.

// Levels of the fast Hadamard transform, in place: radix a power of two, not yet scaled.
static void butterflies(float *z, int64_t n, int64_t radix, int64_t stride) {
    int64_t h = stride;
    if (stride == 1 && radix >= 8) {
        for (int64_t c = 0; c < n; c += 8) {
            float a[8], b[8];
            UNROLL for (int i = 0; i < 8; i++) a[i] = z[c + i];
            UNROLL for (int i = 0; i < 8; i++) b[i] = i & 4 ? a[i - 4] - a[i] : a[i] + a[i + 4];
            UNROLL for (int i = 0; i < 8; i++) a[i] = i & 2 ? b[i - 2] - b[i] : b[i] + b[i + 2];
            UNROLL for (int i = 0; i < 8; i++) z[c + i] = i & 1 ? a[i - 1] - a[i] : a[i] + a[i + 1];
        }
        h = 8;
    }
    for (; 4 * h <= radix * stride; h *= 4)  // two levels at a time
        for (int64_t c = 0; c < n; c += 4 * h) {
            float *p = z + c, *q = p + h, *r = q + h, *s = r + h;
#pragma GCC ivdep
            for (int64_t i = 0; i < h; i++) {
                float pq = p[i] + q[i], qp = p[i] - q[i], rs = r[i] + s[i], sr = r[i] - s[i];
                p[i] = pq + rs, q[i] = qp + sr, r[i] = pq - rs, s[i] = qp - sr;
            }
        }
    for (; 2 * h <= radix * stride; h *= 2)
        for (int64_t c = 0; c < n; c += 2 * h) {
            float *p = z + c, *q = p + h;
#pragma GCC ivdep
            for (int64_t i = 0; i < h; i++) {
                float sum = p[i] + q[i], difference = p[i] - q[i];
                p[i] = sum, q[i] = difference;
            }
        }
}

// A shared matrix on whole vectors of neighbours: four outputs stay in registers.
static void rotate_wide(const float *z, float *to, int64_t radix, int64_t stride, const float *kernel) {
    typedef float Lanes __attribute__((vector_size(32), aligned(4), may_alias));
    for (int64_t s = 0; s < stride; s += 16)
        for (int64_t j = 0; j < radix; j += 4) {
            Lanes sums[4][2] = {};
            int64_t here = radix - j < 4 ? radix - j : 4;
            for (int64_t i = 0; i < radix; i++) {
                Lanes low = *(const Lanes *)(z + i * stride + s), high = *(const Lanes *)(z + i * stride + s + 8);
                UNROLL for (int64_t k = 0; k < 4; k++) {
                    float weight = k < here ? kernel[i * radix + j + k] : 0;
                    sums[k][0] += weight * low, sums[k][1] += weight * high;
                }
            }
            for (int64_t k = 0; k < here; k++) {
                *(Lanes *)(to + (j + k) * stride + s) = sums[k][0];
                *(Lanes *)(to + (j + k) * stride + s + 8) = sums[k][1];
            }
        }
}

// z'[c, j, s] = sum_i K[j, i] z[c, i, s], with K stored as (i, j) where all positions share it, else as (c, i, j, s).
// The inner loops run over neighbours, whichever axis has them.
static void rotate_stage(const float *z, float *to, int64_t n, int64_t radix, int64_t stride, bool shared,
                         const float *matrices) {
    int64_t block = radix * stride;
    if (!shared || stride % 16) memset(to, 0, sizeof(float) * size_t(n));
    for (int64_t c = 0; c < n / block; c++, z += block, to += block) {
        if (shared && stride % 16 == 0) {
            rotate_wide(z, to, radix, stride, matrices);
            continue;
        }
        const float *kernel = shared ? matrices : matrices + c * radix * block;
        for (int64_t i = 0; i < radix; i++)
            if (stride == 1)
                for (int64_t j = 0; j < radix; j++) to[j] += kernel[i * radix + j] * z[i];
            else
                for (int64_t j = 0; j < radix; j++) {
                    const float *from = z + i * stride, *k = kernel + (i * radix + j) * (shared ? 1 : stride);
                    float *row = to + j * stride;
                    for (int64_t s = 0; s < stride; s++) row[s] += (shared ? k[0] : k[s]) * from[s];
                }
    }
}

// Rows of x (count, n), in place or not.
static void rotate(const Stages &by, const float *x, float *out, int64_t count, int64_t n, float *first, float *second) {
    for (int64_t row = 0; row < count; row++, x += n, out += n) {
        for (int64_t i = 0; i < n; i++) first[i] = by.before ? x[i] * by.before[i] : x[i];
        const float *kernel = by.matrices;
        float scale = 1;
        for (int64_t t = 0; t < by.count; t++) {
            int64_t radix = by.numbers[3 * t], stride = by.numbers[3 * t + 1], form = by.numbers[3 * t + 2];
            if (form == HADAMARD) {
                butterflies(first, n, radix, stride);
                scale /= sqrtf(float(radix));
                continue;
            }
            rotate_stage(first, second, n, radix, stride, form == SHARED, kernel);
            float *turned = second;
            second = first, first = turned;
            kernel += form == SHARED ? radix * radix : n * radix;
        }
        for (int64_t i = 0; i < n; i++) out[i] = by.after ? first[i] * scale * by.after[i] : first[i] * scale;
    }
}
