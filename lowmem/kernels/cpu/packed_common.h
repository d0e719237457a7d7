// What the levels of packed.cpp share: a weight as lowmem/quant/codec.py packs it, and activations made ready for it.
//
// A chunk is two blocks of 64 columns. Within a chunk activations stand in the order in which weights come out of the
// planes: place 32 k + 16 h + i holds column 64 h + 16 k + i (k 0..3, block h 0..1, i 0..15), so that the lower half
// of every 256-bit register belongs to the first block and the upper half to the second, whatever the kind.
#pragma once
#include <stdint.h>
#include <string.h>

// Without these GCC leaves the decoders as calls and their registers in memory: e8 was 1.4 times slower (GCC 12).
#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

enum Kind { S2 = 0, S3 = 1, S4 = 2, INT4 = 3, INT8 = 4, E8 = 5, E8R = 6, NESTED = 7 };
constexpr int BLOCK = 64, CHUNK = 128;

struct Packed {
    const uint8_t *planes[2];
    const uint16_t *scales;  // fp16 (m, groups)
    int64_t m, n;
    int64_t group;  // columns that share a scale, 0: the row
    int kind;
    float gain, residual_scale;
    const uint8_t *table;     // scalar kinds: 16 levels + offset
    int offset;               // 0 is stored as this; for e8 see OFFSET_E8
    const uint8_t *patterns;  // e8: 256 x 8, (pattern / 2 + 31) / 2
    const uint8_t *residual;  // e8r: 256 x 8, pattern + 4
    const int32_t *groups;    // of every block, one more for an odd last chunk: the scale that serves it
};

constexpr int OFFSET_E8 = 62, OFFSET_E8R = 4;  // level = 4 u - 62 + shift; level = u - 4

static constexpr int plane_bytes(int kind, int plane) {  // per block of 64 columns
    return plane ? (kind == S3 || kind == E8R ? 8 : kind == NESTED ? 16 : 0)
                 : (kind == S4 || kind == INT4 ? 32 : kind == INT8 ? 64 : 16);
}

static inline bool lattice(int kind) { return kind >= E8; }

static inline bool two_levels(int kind) { return kind >= E8R; }

static inline float half_to_float(uint16_t half) {
    uint32_t sign = uint32_t(half & 0x8000) << 16, rest = half & 0x7FFF, bits = 0;
    float value;
    if (rest >= 0x7C00) bits = 0x7F800000 | (rest & 0x3FF) << 13;
    else if (rest >= 0x400) bits = (rest << 13) + (112u << 23);
    else {
        value = float(rest) * 0x1p-24f;  // subnormal: exact
        memcpy(&bits, &value, sizeof bits);
    }
    bits |= sign;
    memcpy(&value, &bits, sizeof value);
    return value;
}

// One token, ready for a kind. With int8 activations every block of 64 has its own scale, max / 127.
struct Token {
    const float *exact;        // chunks * 128
    const int8_t *codes;       // chunks * 128
    const float *scales;       // chunks * 8: of the first block four times, of the second four times
    const int32_t *start[2];   // chunks * 8: minus offset times the sum of the block's codes, in lanes 0 and 4
    const int8_t *eights[2];   // chunks * 32, e8: sums g of eight codes as 8 * eights[0] + eights[1], where sign bytes are
};

// The two blocks of one row and chunk; a last chunk of one block reads a padded copy.
struct Place {
    const uint8_t *data[2];
};
