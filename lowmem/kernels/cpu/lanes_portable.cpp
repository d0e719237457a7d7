// Primitives for any compiler with vector extensions: four lanes, no intrinsics. See passes.cpp for what they mean.
constexpr int LANES = 4;
typedef uint32_t Words __attribute__((vector_size(4 * LANES)));
typedef uint64_t Wide __attribute__((vector_size(4 * LANES)));
typedef int32_t Ints __attribute__((vector_size(4 * LANES)));
typedef float Floats __attribute__((vector_size(4 * LANES)));

static inline Wide product(Wide a, uint32_t factor) { return (a & 0xFFFFFFFF) * factor; }

static inline Words merge(Wide even, Wide odd) { return (Words)((even & 0xFFFFFFFF) | odd << 32); }

static inline Words popcount(Words x) {
    x = x - ((x >> 1) & 0x55555555);
    x = (x & 0x33333333) + ((x >> 2) & 0x33333333);
    x = (x + (x >> 4)) & 0x0F0F0F0F;
    x = x + (x >> 8);
    return (x + (x >> 16)) & 63;
}

static inline Words coins(Words x) { return 3 * popcount(x >> 4) + popcount(x & 15); }

static inline Words load16(const uint16_t *from) {
    Words words;
    for (int lane = 0; lane < LANES; lane++) words[lane] = from[lane];
    return words;
}

static inline void store16(uint16_t *to, Words words) {
    for (int lane = 0; lane < LANES; lane++) to[lane] = uint16_t(words[lane]);
}

// Integer arithmetic throughout: a thread that flushes subnormals to zero still gets the right answer.
static inline Floats load_half(const uint16_t *from) {
    Words bits = load16(from), size = bits & 0x7FFF;
    Words normal = (size << 13) + (112u << 23), special = normal + (112u << 23);
    Words tiny = (Words)(__builtin_convertvector((Ints)size, Floats) * 0x1p-24f);
    Words value = size < 0x400 ? tiny : (size < 0x7C00 ? normal : special);
    return (Floats)(value | (bits & 0x8000) << 16);
}

static inline void store_half(uint16_t *to, Floats x) {
    Words bits = (Words)x, size = bits & 0x7FFFFFFF;
    Words tiny = (Words)((Floats)size + 0.5f) - 0x3F000000;  // the step of fp32 above 0.5 is fp16's smallest
    Words normal = ((size + 0xFFF + ((size >> 13) & 1)) >> 13) - (112 << 10);
    Words value = size < 0x38800000 ? tiny : (size < 0x477FF000 ? normal : (Words){} + 0x7C00);
    value = size > 0x7F800000 ? (Words){} + 0x7E00 : value;
    store16(to, value | (bits >> 16 & 0x8000));
}
