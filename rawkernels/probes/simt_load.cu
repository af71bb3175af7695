// simt_load.cu -- probe of Simt::load: a matrix of any strides in tiles, with zeros beyond its last row and column.
#include "../core/simt_tile.cuh"
#include "probe.cuh"

namespace cf {

template <ProbeConfig CONFIG> struct ProbeSimtLoad {
    using T = Storage<CONFIG.dtype>;
    using A = Acc<T>;
    using Units = Simt<A>;
    static constexpr int ROWS = 16, COLS = 32;  // of a tile
    struct Params {
        const T* data;
        A* tiles;               // [row_tiles, col_tiles, ROWS, COLS]
        int64_t offset;         // of the matrix in `data`, in elements
        int64_t row_stride, col_stride, rows, cols;
        int64_t col_tiles;      // a block has one tile
    };
    using Tile = SimtTile<A, ROWS, COLS>;
    static constexpr int THREADS = Units::THREADS, BLOCKS_PER_SM = 1, SMEM_BYTES = sizeof(Tile);

    static __device__ void run(const Params& params) {
        Tile& tile = shared_map<Tile>();
        const Matrix<T> matrix{params.data + params.offset, params.row_stride, params.col_stride, int(params.rows),
                               int(params.cols)};
        const int block = blockIdx.x, col_tiles = int(params.col_tiles);
        Units::load(tile, matrix, block / col_tiles * ROWS, block % col_tiles * COLS);
        __syncthreads();    // the tile is complete
        for (int i = threadIdx.x; i < ROWS * COLS; i += THREADS)
            params.tiles[int64_t(block) * ROWS * COLS + i] = tile.at(i / COLS, i % COLS);
    }
};

}  // namespace cf
