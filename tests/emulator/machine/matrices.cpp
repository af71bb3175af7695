// ldmatrix and mma.sync: what a warp does with 8 x 8 matrices of 16-bit numbers spread over its lanes.
#include <cstring>

#include "access.hpp"
#include "findings.hpp"
#include "warps.hpp"

namespace machine {

namespace {

constexpr uint32_t ALL_LANES = 0xffffffff;
constexpr uint32_t MATRIX_ROWS = 8, ROW_BYTES = 16;

struct LoadArgument {
    uint32_t address, count;
    bool transposed;
    uint32_t* to;
};

// Eight rows are read at once, 128 bytes over 32 banks: each further row that shares another's banks is a conflict.
uint64_t conflicts(const uint32_t (&rows)[MATRIX_ROWS]) {
    uint64_t found = 0;
    for (uint32_t row = 0; row < MATRIX_ROWS; ++row)
        for (uint32_t before = 0; before < row; ++before)
            if (rows[row] != rows[before] && rows[row] / ROW_BYTES % MATRIX_ROWS == rows[before] / ROW_BYTES % MATRIX_ROWS) {
                ++found;
                break;
            }
    return found;
}

// Lane l gets elements 2 l and 2 l + 1 of a matrix, counted along its rows or, transposed, along its columns.
void give(Warp& warp, uint32_t lane, const uint32_t (&rows)[MATRIX_ROWS], bool transposed, uint32_t* to, Site site) {
    uint16_t pair[2];
    for (uint32_t i = 0; i < 2; ++i) {
        uint32_t row = transposed ? 2 * (lane % 4) + i : lane / 4, col = transposed ? lane / 4 : 2 * (lane % 4) + i;
        uint32_t offset = shared_offset(rows[row]) + 2 * col;
        if (launch.checks) warp.block->cells.read(warp.threads[lane], offset, 2, site, "ldmatrix");
        std::memcpy(&pair[i], warp.block->shared + offset, 2);
    }
    std::memcpy(to, pair, sizeof pair);
}

bool finish_load(Meeting& meeting, Warp& warp) {
    LoadArgument* lanes[WARP_LANES];
    for_lanes<LoadArgument>(meeting, [&](uint32_t lane, LoadArgument& load) { lanes[lane] = &load; });
    for (uint32_t matrix = 0; matrix < lanes[0]->count; ++matrix) {
        uint32_t rows[MATRIX_ROWS];
        for (uint32_t row = 0; row < MATRIX_ROWS; ++row) {
            rows[row] = lanes[MATRIX_ROWS * matrix + row]->address;
            shared_data(rows[row], ROW_BYTES, meeting.site, "ldmatrix");
        }
        launch.counters.bank_conflicts += conflicts(rows);
        ++launch.counters.matrix_loads;
        for (uint32_t lane = 0; lane < WARP_LANES; ++lane)
            give(warp, lane, rows, lanes[lane]->transposed, lanes[lane]->to + matrix, meeting.site);
    }
    return true;
}

struct MmaArgument {
    float* d;
    const uint32_t *a, *b;
    const float* c;
    uint32_t depth;
    bool bfloat;
};

float half_of(uint32_t word, uint32_t i, bool bfloat) {
    uint16_t bits = uint16_t(word >> 16 * i);
    return bfloat ? f32_from_bf16(bits) : f32_from_f16(bits);
}

// d = a (16 x depth) b (depth x 8) + c. The manual leaves the order of the sum open and promises single precision at
// least: here it is exact but for one rounding of a double.
bool finish_mma(Meeting& meeting, Warp&) {
    MmaArgument* lanes[WARP_LANES];
    for_lanes<MmaArgument>(meeting, [&](uint32_t lane, MmaArgument& mma) { lanes[lane] = &mma; });
    const uint32_t depth = lanes[0]->depth;
    const bool bfloat = lanes[0]->bfloat;
    double a[16][16], b[8][16];
    for (uint32_t lane = 0; lane < WARP_LANES; ++lane)
        for (uint32_t k8 = 0; k8 < depth / 8; ++k8)
            for (uint32_t i = 0; i < 2; ++i) {
                uint32_t group = lane / 4, k = 8 * k8 + 2 * (lane % 4) + i;
                a[group][k] = half_of(lanes[lane]->a[2 * k8], i, bfloat);
                a[group + 8][k] = half_of(lanes[lane]->a[2 * k8 + 1], i, bfloat);
                b[group][k] = half_of(lanes[lane]->b[k8], i, bfloat);
            }
    for (uint32_t lane = 0; lane < WARP_LANES; ++lane)
        for (uint32_t i = 0; i < 4; ++i) {
            uint32_t row = lane / 4 + i / 2 * 8, col = 2 * (lane % 4) + i % 2;
            double sum = lanes[lane]->c[i];
            for (uint32_t k = 0; k < depth; ++k) sum += a[row][k] * b[col][k];
            lanes[lane]->d[i] = float(sum);
        }
    ++launch.counters.mmas;
    return true;
}

void need_whole_warp(const char* name, Site site) {
    if (current->warp->existing != ALL_LANES || current->warp->exited)
        stop("divergence", site, "%s in a warp that does not have all its 32 lanes", name);
}

}  // namespace

void ldmatrix(uint32_t* to, uint32_t address, uint32_t count, bool transposed, Site site) {
    need_whole_warp("ldmatrix", site);
    LoadArgument argument{address, count, transposed, to};
    meet("ldmatrix", ALL_LANES, &argument, site, finish_load);
}

void mma_m16n8(float* d, const uint32_t* a, const uint32_t* b, const float* c, uint32_t depth, bool bfloat, Site site) {
    need_whole_warp("mma.sync", site);
    MmaArgument argument{d, a, b, c, depth, bfloat};
    meet("mma.sync", ALL_LANES, &argument, site, finish_mma);
}

}  // namespace machine
