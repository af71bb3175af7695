"""Numbers that were measured, and nothing else: changing one changes speed, never results beyond rounding."""

# NumPy on the CPU. One float32 score tile of 256 x 512 is 512 KB: it stays in a core's second-level cache (1 MB on the
# machine these were read on, AMD Zen 4) through the passes of the softmax. At l = 4096, d = 64, one head, one thread:
# rows x keys 64 x 512 74.6 ms, 128 x 512 66.2 ms, 256 x 256 65.9 ms, 256 x 512 62.2 ms, 256 x 1024 62.9 ms.
BLOCK_ROWS = 256  # query rows of one block, where they are of one head
SCORE_TILE = 256 * 512  # elements of one score tile
KV_TILE_MOST = 2048  # keys of one tile, where there are few rows
# exp2 runs twice as fast as exp on NumPy's AVX-512 loops (29 against 60 us a tile), but falls back to 630-1200 us where
# a tile holds -inf or anything below -126, as every causal edge and every long ALiBi distance does; exp does not.

# Fewer blocks than this leave cores idle, so a call makes its blocks smaller or cuts the keys into parts.
BLOCKS_WANTED = 16
BLOCK_ROWS_LEAST = 64
PART_KEYS = 1024  # keys of one part
BACKWARD_PARTS_MOST = 4  # each part keeps its own dq
BACKWARD_PART_KEYS_LEAST = 512

# Multiply-adds of a call below which no BLAS product in it gets threads of its own (OpenBLAS: 9216 elements of a matrix
# times a vector, 262144 multiply-adds of a product), so that BLAS need not be held to one; holding it takes 5 us.
TINY_WORK = 9000

# Multiply-adds below which a block is not worth cutting, and half of what is worth waking a thread of the pool (30 us).
SMALL_WORK = 1_000_000
