// config.cuh -- what the kernels are compiled for. Everything else about a call is a run-time value.
#pragma once
#include "../core/simt_tile.cuh"

namespace cf {

struct SimtConfig {
    Dtype dtype;
    int value_dim;  // columns of the output that a block keeps in registers: dv, rounded up
    int q_tile, kv_tile;
    int blocks;     // that a multiprocessor is to hold: what the compiler may spend in registers follows from it
};

// The same for kernels of the gradient.
struct GradientConfig {
    Dtype dtype;
    int columns;    // of dq, or of dk or dv, that a block keeps in registers
    int q_tile, kv_tile;
    int blocks;
};

// Whether products over the features are summed in two steps, of each chunk and then of the chunks (Simt::add). That
// takes the registers of the scores once more, which blocks of 64 columns do not have to spare: they are for at most 64
// features (cuflash/_configs.py). 16-bit results are too coarse to gain from it.
template <Dtype DTYPE, int COLUMNS> constexpr bool TWO_STEPS = sizeof(Storage<DTYPE>) > 2 && COLUMNS != 64;

// Kernels on tensor cores.
struct MmaConfig {
    Dtype dtype;
    int head_dim, value_dim;    // d and dv, rounded up to multiples of 32
    int q_tile, kv_tile, warps;
    int blocks;
};

// Kernels that pass over an array element by element.
struct ElementConfig {
    Dtype dtype;
};

}  // namespace cf
