// The passes over weights, written once and compiled for every instruction set: included after one of the lanes_*.cpp,
// inside that one's namespace and target. No template of the standard library may be used here: its instance could be
// compiled for AVX-512 and then shared with the other levels. The layout of the noise is that of lowmem/kernels/noise.py.
//
// A row is worked on in segments of SEGMENT columns: the scaled noise of a segment is gathered in a buffer that stays
// in the first-level cache, then applied while the weights stream past once. From the lanes file:
//   product(a, factor)     64-bit products of the lower halves of 64-bit lanes
//   merge(even, odd)       the lower halves of both, as neighbours
//   coins(x)               3 popcount(x >> 4) + popcount(x & 15)
//   load16, store16        16-bit numbers to and from 32-bit lanes
//   load_half, store_half  fp16 to and from fp32 lanes, rounding to nearest even

static inline Words all(uint32_t value) { return (Words){} + value; }

static inline Words lane_numbers() {
    Words lanes;
    for (int lane = 0; lane < LANES; lane++) lanes[lane] = uint32_t(lane);
    return lanes;
}

constexpr int GROUPS = 16 / LANES;

// The words of sixteen neighbouring counters, as GROUPS vectors each.
struct Blocks {
    Words word[4][GROUPS];
};

// A word of LANES / 2 counters to 64 bits, of which only the lower half means anything: then a product is one
// instruction, and its halves need no sorting until the end.
struct Counters {
    Wide c0, c1, c2, c3;

    inline void round(Wide k0, Wide k1) {
        Wide product0 = product(c0, 0xD2511F53u), product1 = product(c2, 0xCD9E8D57u);
        c0 = (product1 >> 32) ^ c1 ^ k0;
        c1 = product1;
        c2 = (product0 >> 32) ^ c3 ^ k1;
        c3 = product0;
    }
};

static inline void philox_lanes(Blocks &out, int group, uint32_t first_block, uint32_t row, uint32_t stream, uint64_t key) {
    Wide pairs;
    for (int i = 0; i < LANES / 2; i++) pairs[i] = first_block + 2 * i;
    Counters even = {pairs, (Wide){} + row, (Wide){} + stream, (Wide){}};
    Counters odd = {pairs + 1, even.c1, even.c2, even.c3};
    Wide k0 = (Wide){} + uint32_t(key), k1 = (Wide){} + (key >> 32);
    UNROLL for (int round = 0; round < 10; round++) {
        even.round(k0, k1);
        odd.round(k0, k1);
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    out.word[0][group] = merge(even.c0, odd.c0);
    out.word[1][group] = merge(even.c1, odd.c1);
    out.word[2][group] = merge(even.c2, odd.c2);
    out.word[3][group] = merge(even.c3, odd.c3);
}

static inline Blocks philox(uint32_t first_block, uint32_t row, uint32_t stream, uint64_t key) {
    Blocks out;
    for (int g = 0; g < GROUPS; g++) philox_lanes(out, g, first_block + g * LANES, row, stream, key);
    return out;
}

static inline Floats load_floats(const float *from) {
    Floats x;
    memcpy(&x, from, sizeof x);
    return x;
}

static inline void store_floats(float *to, Floats x) { memcpy(to, &x, sizeof x); }

// `x` times the coefficient, added to what is there (several terms) or in its place (one).
template <bool ADD> static inline void put(float *to, Floats x) { store_floats(to, ADD ? load_floats(to) + x : x); }

template <bool ADD> static void put_rademacher(float *out, Place place, int width, Term term) {
    Words shift[32 / LANES];
    for (int part = 0; part < 32 / LANES; part++) shift[part] = 31 - part * LANES - lane_numbers();
    Words size = (Words)((Floats){} + term.coef);
    for (int col = 0; col < width; col += 16 * 128) {
        Blocks blocks = philox(uint32_t((place.col + col) / 128), place.row, STREAM_RADEMACHER, term.key);
        uint32_t words[4][16];
        memcpy(words, blocks.word, sizeof words);
        for (int i = 0; i < 64 && col + i * 32 < width; i++)
            for (int part = 0; part < 32 / LANES; part++) {
                Words sign = (all(words[i % 4][i / 4]) << shift[part]) & 0x80000000u;
                put<ADD>(out + col + i * 32 + part * LANES, (Floats)(sign ^ size));
            }
    }
}

// Eight times the Gaussian at `place` as whole numbers, `width` rounded up to 64 columns.
template <class Put> static inline void gaussian(Place place, int width, uint32_t stream, uint64_t key, Put put_lanes) {
    for (int chunk = 0; chunk < width; chunk += 64) {
        Blocks blocks = philox(uint32_t((place.col + chunk) / 4), place.row, stream, key);
        UNROLL for (int word = 0; word < 4; word++)
            UNROLL for (int g = 0; g < GROUPS; g++) {
                Ints whole = (Ints)(coins(blocks.word[word][g]) - 44);
                put_lanes(chunk + word * 16 + g * LANES, __builtin_convertvector(whole, Floats));
            }
    }
}

template <bool ADD> static void put_gaussian(float *out, Place place, int width, Term term) {
    gaussian(place, width, STREAM_GAUSSIAN, term.key,
             [&](int col, Floats whole) { put<ADD>(out + col, (whole * 0.125f) * term.coef); });
}

// V of one term for the columns of a segment, transposed: right[k * SEGMENT + col].
static void fill_right(float *right, int64_t col, int width, Term term, int rank) {
    float line[MAX_RANK + 64];
    for (int j = 0; j < width; j++) {
        gaussian({0, uint32_t(col + j)}, rank, STREAM_RIGHT, term.key,
                 [&](int k, Floats whole) { store_floats(line + k, whole); });
        for (int k = 0; k < rank; k++) right[int64_t(k) * SEGMENT + j] = line[k];
    }
}

template <bool ADD>
static void put_low_rank(float *out, Place place, int width, Term term, const float *right, const Direction &kind) {
    float left[MAX_RANK + 64];
    gaussian({0, place.row}, kind.rank, STREAM_LEFT, term.key, [&](int k, Floats whole) { store_floats(left + k, whole); });
    for (int j = 0; j < width; j += LANES) {
        Floats sum = {};  // whole numbers below 2^24: exact in any order
        for (int k = 0; k < kind.rank; k++) sum += left[k] * load_floats(right + int64_t(k) * SEGMENT + j);
        put<ADD>(out + j, (sum * kind.unit) * term.coef);
    }
}

template <bool ADD>
static void put_direction(float *out, Place place, int width, Term term, const float *right, const Direction &kind) {
    if (kind.rank > 0) put_low_rank<ADD>(out, place, width, term, right, kind);
    else if (kind.gaussian) put_gaussian<ADD>(out, place, width, term);
    else put_rademacher<ADD>(out, place, width, term);
}

template <int TYPE> struct Element;

template <> struct Element<FLOAT32> {
    typedef float Stored;
    static inline Floats load(const float *from) { return load_floats(from); }
    static inline void store(float *to, Floats x) { store_floats(to, x); }
    static inline void store_stochastic(float *to, Floats x, Words) { store_floats(to, x); }
};

template <> struct Element<BFLOAT16> {
    typedef uint16_t Stored;
    static inline Floats load(const uint16_t *from) { return (Floats)(load16(from) << 16); }
    static inline void store(uint16_t *to, Floats x) {
        Words bits = (Words)x;
        Words rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
        store16(to, x != x ? all(0x7FC0) : rounded);
    }
    static inline void store_stochastic(uint16_t *to, Floats x, Words noise) {
        Words rounded = ((Words)x + noise) >> 16;
        store16(to, x != x ? all(0x7FC0) : rounded);  // an infinity has no low bits, so nothing carries
    }
};

template <> struct Element<FLOAT16> {
    typedef uint16_t Stored;
    static inline Floats load(const uint16_t *from) { return load_half(from); }
    static inline void store(uint16_t *to, Floats x) { store_half(to, x); }
    // Below 2^-14 the step of fp16 no longer shrinks: 2^-14 is added while rounding, which makes fp32's step 2^13
    // times finer there, as it is above.
    static inline void store_stochastic(uint16_t *to, Floats x, Words noise) {
        Words sign = (Words)x & 0x80000000u;
        Floats size = (Floats)((Words)x ^ sign);
        Floats offset = size < 0x1p-14f ? (Floats){} + 0x1p-14f : (Floats){};
        Words bits = ((Words)(size + offset) + (noise >> 3)) & ~0x1FFFu;
        Words rounded = (Words)((Floats)bits - offset) | sign;
        store_half(to, (Floats)(x - x == 0 ? rounded : (Words)x));
    }
};

// The last, partial vector of a row travels through a padded copy.
template <class Stored> struct Edge {
    Stored lanes[LANES];
    Edge(const Stored *from, int count) : lanes{} { memcpy(lanes, from, count * sizeof(Stored)); }
    void copy_to(Stored *to, int count) const { memcpy(to, lanes, count * sizeof(Stored)); }
};

template <int TYPE>
static void apply(const typename Element<TYPE>::Stored *weight, const float *shift, int width,
                  typename Element<TYPE>::Stored *plus, typename Element<TYPE>::Stored *minus) {
    int i = 0;
    for (; i + LANES <= width; i += LANES) {
        Floats w = Element<TYPE>::load(weight + i), d = load_floats(shift + i);
        Element<TYPE>::store(plus + i, w + d);
        if (minus) Element<TYPE>::store(minus + i, w - d);
    }
    if (i == width) return;
    Edge<typename Element<TYPE>::Stored> edge(weight + i, width - i);
    Floats w = Element<TYPE>::load(edge.lanes), d = load_floats(shift + i);
    Element<TYPE>::store(edge.lanes, w + d);
    edge.copy_to(plus + i, width - i);
    if (!minus) return;
    Element<TYPE>::store(edge.lanes, w - d);
    edge.copy_to(minus + i, width - i);
}

// 16 bits of rounding noise per column, `width` rounded up to 128 columns.
static void rounding_noise(uint32_t *noise, Place place, int width, uint64_t key) {
    for (int chunk = 0; chunk < width; chunk += 128) {
        Blocks blocks = philox(uint32_t((place.col + chunk) / 8), place.row, STREAM_ROUNDING, key);
        for (int word = 0; word < 4; word++)
            for (int g = 0; g < GROUPS; g++) {
                uint32_t *to = noise + chunk + word * 32 + g * LANES;
                Words low = blocks.word[word][g] & 0xFFFF, high = blocks.word[word][g] >> 16;
                memcpy(to, &low, sizeof low);
                memcpy(to + 16, &high, sizeof high);
            }
    }
}

template <int TYPE>
static void move(typename Element<TYPE>::Stored *weight, const float *shift, const uint32_t *noise, float keep, int width) {
    auto moved = [&](typename Element<TYPE>::Stored *at, int i) {
        Words random;
        memcpy(&random, noise + i, sizeof random);
        Element<TYPE>::store_stochastic(at, Element<TYPE>::load(at) * keep - load_floats(shift + i), random);
    };
    int i = 0;
    for (; i + LANES <= width; i += LANES) moved(weight + i, i);
    if (i == width) return;
    Edge<typename Element<TYPE>::Stored> edge(weight + i, width - i);
    moved(edge.lanes, i);
    edge.copy_to(weight + i, width - i);
}

// Calls work(row, col, width) for every segment of `part`. Low-rank directions walk down the columns, so that
// part.right, the columns' factors of all terms, is filled once per segment.
template <class Work>
static void for_each_segment(const Part &part, const Direction &kind, const Term *terms, int64_t count, Work work) {
    auto width_at = [&](int64_t col) { return int(part.last_col - col < SEGMENT ? part.last_col - col : SEGMENT); };
    if (kind.rank == 0) {
        for (int64_t row = part.first_row; row < part.last_row; row++)
            for (int64_t col = part.first_col; col < part.last_col; col += SEGMENT) work(row, col, width_at(col));
        return;
    }
    for (int64_t col = part.first_col; col < part.last_col; col += SEGMENT) {
        for (int64_t i = 0; i < count; i++)
            fill_right(part.right + kind.rank * i * SEGMENT, col, width_at(col), terms[i], kind.rank);
        for (int64_t row = part.first_row; row < part.last_row; row++) work(row, col, width_at(col));
    }
}

template <int TYPE> static void perturb_typed(const Perturb &job, const Part &part) {
    typedef typename Element<TYPE>::Stored Stored;
    alignas(64) float shift[SEGMENT];
    for_each_segment(part, job.kind, &job.term, 1, [&](int64_t row, int64_t col, int width) {
        int64_t source = job.rows ? job.rows[row] : row;
        put_direction<false>(shift, {col, uint32_t(source)}, width, job.term, part.right, job.kind);
        int64_t to = row * job.cols + col;
        apply<TYPE>((const Stored *)job.weight + source * job.stride + col, shift, width, (Stored *)job.plus + to,
                    job.minus ? (Stored *)job.minus + to : nullptr);
    });
}

template <int TYPE> static void update_typed(const Update &job, const Part &part) {
    typedef typename Element<TYPE>::Stored Stored;
    alignas(64) float shift[SEGMENT];
    alignas(64) uint32_t noise[SEGMENT] = {};
    for_each_segment(part, job.kind, job.terms, job.count, [&](int64_t row, int64_t col, int width) {
        Place place = {col, uint32_t(row)};
        for (int64_t step = 0, i = 0; step < job.steps; step++) {
            memset(shift, 0, sizeof shift);
            for (; i < job.ends[step]; i++)
                put_direction<true>(shift, place, width, job.terms[i], part.right + job.kind.rank * i * SEGMENT, job.kind);
            if (TYPE != FLOAT32) rounding_noise(noise, place, width, job.rounding_keys[step]);
            move<TYPE>((Stored *)job.weight + row * job.stride + col, shift, noise, job.keep, width);
        }
    });
}

static void perturb(const Perturb &job, const Part &part) {
    if (job.type == FLOAT32) perturb_typed<FLOAT32>(job, part);
    else if (job.type == BFLOAT16) perturb_typed<BFLOAT16>(job, part);
    else perturb_typed<FLOAT16>(job, part);
}

static void update(const Update &job, const Part &part) {
    if (job.type == FLOAT32) update_typed<FLOAT32>(job, part);
    else if (job.type == BFLOAT16) update_typed<BFLOAT16>(job, part);
    else update_typed<FLOAT16>(job, part);
}
