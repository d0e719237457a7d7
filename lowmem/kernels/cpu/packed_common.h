// What the levels of packed.cpp share: a weight as lowmem/quant/codec.py packs it, and activations made ready for it.
//
// Kernels take four blocks of 64 columns at a time, a step, as two chunks of two blocks. Within a chunk activations
// stand in the order in which weights come out of the planes (`place`): the lower half of every 256-bit register
// belongs to the first block and the upper half to the second, whatever the kind.
//
// Decoders give small unsigned numbers u with level = factor * u - offset. The part of the offset is the same for all
// rows, so it is summed once for each token (`constant`), except where groups of columns have scales of their own.
#pragma once
#include <stdint.h>
#include <string.h>

// Without these GCC leaves the decoders as calls and their registers in memory: e8 was 1.4 times slower (GCC 12).
#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

enum Kind { S2 = 0, S3 = 1, S4 = 2, INT4 = 3, INT8 = 4, E8 = 5, E8R = 6, NESTED = 7 };
constexpr int BLOCK = 64, CHUNK = 128, STEP = 256;

struct Packed {
    const uint8_t *planes[2];
    const uint16_t *scales;  // fp16 (m, groups)
    int64_t m, n;
    int64_t group;  // columns that share a scale, 0: the row
    int kind;
    float gain, residual_scale;
    const uint8_t *table;      // scalar kinds: 16 levels + offset
    int offset;                // of scalar kinds
    const uint32_t *patterns;  // lattice kinds: 256 rows of eight nibbles, P / 2 + 8; three more before and after
    const uint32_t *residual;  // e8r: the same with R + 4
    const int32_t *groups;     // of every block, up to whole steps: the scale that serves it
};

static constexpr int plane_bytes(int kind, int plane) {  // per block of 64 columns
    return plane ? (kind == S3 || kind == E8R ? 8 : kind == NESTED ? 16 : 0)
                 : (kind == S4 || kind == INT4 ? 32 : kind == INT8 ? 64 : 16);
}

static constexpr bool lattice(int kind) { return kind >= E8; }

static constexpr bool two_levels(int kind) { return kind >= E8R; }

// Eight products of a decoded number with an int8 activation fit 16 bits.
static constexpr bool small(int kind) { return kind == S2 || kind == INT4 || lattice(kind); }

static constexpr int factor(int kind, int plane) { return lattice(kind) && !(kind == E8R && plane) ? 2 : 1; }

static inline int offset(const Packed &w, int plane) {
    return w.kind == E8R && plane ? 4 : lattice(w.kind) ? 15 : w.kind == INT8 ? 0 : w.offset;
}

// Where activation j of a block stands in its chunk, for block h of it.
static inline int place(int kind, int h, int j) {
    if (!lattice(kind)) return j / 16 * 32 + 16 * h + j % 16;
    int vector = j / 8, entry = j % 8;
    return 32 * (vector / 4 * 2 + entry % 2) + 16 * h + 4 * (vector % 4) + entry / 2;
}

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
    const float *exact;      // steps * 256
    const int8_t *codes;     // steps * 256
    const float *scales;     // steps * 16: a chunk's first block four times, its second four times
    const float *start[2];   // steps * 16: minus offset / factor times the sum of the block's codes, in lanes 0 and 4
    float constant[2];       // sum of start * scale
};

// The four blocks of one row and step; a last step of fewer blocks reads a padded copy.
struct Place {
    const uint8_t *data[2];
};
