"""Numbers that were measured, and nothing else: changing one changes speed, never results beyond rounding."""

# NumPy on the CPU, read on an AMD Zen 4 with 1 MB of second-level cache a core. Large tiles are fewer calls, and
# threads meet in each call at the interpreter's lock. b = 1, h = 8, d = 64, 2 threads, full l = 1024, causal l = 4096:
# rows x keys 256 x 256 22 and 163 ms, 256 x 512 19 and 150, 256 x 1024 18 and 135, 512 x 1024 18 and 136.
BLOCK_ROWS = 256  # query rows of one block, where they are of one head
SCORE_TILE = 256 * 1024  # elements of one score tile
KV_TILE_MOST = 2048  # keys of one tile, where there are few rows

# A pass over the keys for their norms saves the maximum and the subtraction of every score, 0.7 ns each; it costs about
# 70 us a head. Of fewer rows than this, reading the keys is what takes time.
BOUNDED_ROWS_LEAST = 64
BOUNDED_SCORES_LEAST = 1 << 18

# Few rows over many keys: these are read for all heads of a block at a time, as they lie in a cache's memory. b = 1,
# 32/8 heads, d = 128, 16384 keys took 17 ms in loads of 1024 keys, 9.5 in 512, 8.5 in 256, 8.3 in 128, 10.5 in 64.
LOAD_TILE = 256 * 8 * 128  # elements of a load
LOAD_HEADS = 8  # that decoding reckons with, so that its loads depend on d alone
LOAD_KEYS_LEAST = 32

# Fewer blocks than this leave cores idle, so a call makes its blocks smaller or cuts the keys into parts.
BLOCKS_WANTED = 16
BLOCK_ROWS_LEAST = 64
PART_KEYS = 1024  # keys of one part
BACKWARD_PARTS_MOST = 4  # each part keeps its own dq
BACKWARD_PART_KEYS_LEAST = 512

# Multiply-adds of a call below which no BLAS product in it gets threads of its own (OpenBLAS: 9216 elements of a matrix
# times a vector, 262144 multiply-adds of a product), so that BLAS need not be held to one; holding it takes 5 us.
TINY_WORK = 9000

# Multiply-adds below which a block is not worth cutting: 90 us, about what NumPy spends on the calls of a block.
BLOCK_WORK_LEAST = 4_000_000

# Multiply-adds of a call below which another thread costs as much as it takes over (one thread against two: 17 M 0.9
# and 1.3 ms, 25 M 0.7 and 0.8, 34 M 4.6 and 4.4, 50 M 1.5 and 1.4, 67 M 4.2 and 3.3).
SMALL_WORK = 50_000_000

# fwd_mma: (columns of q and k, of v) to rows of queries and keys of a tile, warps, blocks that a multiprocessor is to
# hold, bytes of shared memory. The first row is taken of which the device has shared memory for all these blocks, else
# for one: 128 queries of 128 columns where there are 164 KB, 64 where there are 100. Two row tiles for a warp (128
# queries for 4 warps) halve what it reads from shared memory, which bounds 64 x 64. None was timed on a GPU yet; none
# spills on an architecture that takes it (sm_75 takes 64 queries at 128 columns: 64 bytes with 128).
MmaTable = dict[tuple[int, int], tuple[tuple[int, int, int, int, int], ...]]
FWD_MMA: MmaTable = {
    (32, 32): ((128, 64, 4, 3, 20864),),
    (64, 64): ((128, 64, 4, 2, 33152),),
    (96, 96): ((128, 64, 4, 2, 49536),),
    (128, 128): ((128, 64, 4, 2, 65920), (64, 64, 4, 2, 49536)),
    (192, 128): ((128, 64, 8, 1, 90496), (64, 32, 4, 1, 45440)),
    (192, 192): ((128, 64, 8, 1, 98688), (64, 32, 4, 1, 49536)),
    (256, 256): ((128, 64, 8, 1, 131456), (64, 64, 4, 1, 98688), (64, 16, 4, 1, 49536)),
}

# GPU kernels without tensor cores: (bytes of an element, columns that a block keeps in registers) to queries and keys
# of a tile, blocks that a multiprocessor is to hold, and bytes of shared memory. None was timed on a GPU yet. Blocks
# are the most that compile without a spill on every architecture (bytes spilled by fwd_simt with one more, at 64, 128,
# 256, 512 columns: 16-bit 4, 4, 12, 80; float32 8, 156, 104, 144; float64 116, 116, 184, 160).
Table = dict[tuple[int, int], tuple[int, int, int, int]]
FWD_SIMT: Table = {
    (2, 64): (64, 64, 3, 36128), (4, 64): (64, 64, 3, 36128), (8, 64): (64, 32, 2, 34096),
    (2, 128): (64, 64, 2, 36128), (4, 128): (64, 64, 2, 36128), (8, 128): (32, 32, 3, 18224),
    (2, 256): (32, 64, 3, 25376), (4, 256): (32, 64, 3, 25376), (8, 256): (16, 32, 4, 12848),
    (2, 512): (16, 64, 4, 21024), (4, 512): (16, 64, 4, 21024), (8, 512): (16, 32, 2, 12848),
}  # fmt: skip
BWD_Q_SIMT: Table = {
    (2, 64): (64, 64, 4, 36704), (4, 64): (64, 64, 4, 36704), (8, 64): (64, 32, 3, 35184),
    (2, 128): (64, 64, 3, 36704), (4, 128): (64, 64, 3, 36704), (8, 128): (32, 32, 3, 18800),
    (2, 256): (32, 64, 3, 25696), (4, 256): (32, 64, 3, 25696), (8, 256): (16, 32, 4, 13168),
    (2, 512): (16, 64, 3, 21216), (4, 512): (16, 64, 3, 21216), (8, 512): (16, 32, 2, 13168),
}  # fmt: skip
BWD_KV_SIMT: Table = {
    (2, 64): (64, 64, 4, 36704), (4, 64): (64, 64, 4, 36704), (8, 64): (32, 64, 3, 34160),
    (2, 128): (64, 64, 3, 36704), (4, 128): (64, 64, 2, 36704), (8, 128): (32, 64, 2, 34160),
}  # fmt: skip
# Kernels that keep no columns have those of the kernels beside which they run: of as many, scores are summed alike.
BWD_BIAS_SIMT: Table = {
    (2, 128): (64, 64, 4, 36688),
    (4, 64): (64, 64, 3, 36688), (4, 128): (64, 64, 3, 36688),
    (8, 64): (64, 32, 3, 32592), (8, 128): (64, 32, 3, 32592),
}  # fmt: skip
WEIGHTS_SIMT: Table = {
    (2, 128): (64, 64, 4, 36624),
    (4, 64): (64, 64, 4, 36624), (4, 128): (64, 64, 4, 36624),
    (8, 64): (64, 32, 3, 32544), (8, 128): (64, 32, 3, 32544),
}  # fmt: skip

# Decoding, as above but by (bytes of a number in arithmetic, columns): tiles for few queries of a key/value head, then
# for more. No variant spills on any architecture.
DECODE_SIMT: dict[tuple[int, int], tuple[tuple[int, int, int, int], ...]] = {
    (4, 64): ((8, 64, 4, 19664), (32, 64, 3, 26384)),
    (4, 128): ((8, 64, 4, 19664), (32, 64, 3, 26384)),
    (4, 256): ((8, 64, 4, 19664), (16, 64, 4, 21904)),
    (4, 512): ((8, 64, 4, 19664),),
    (8, 64): ((8, 32, 4, 10960), (32, 32, 3, 18704)),
    (8, 128): ((8, 32, 4, 10960), (32, 32, 2, 18704)),
    (8, 256): ((8, 32, 3, 10960), (16, 32, 3, 13200)),
    (8, 512): ((8, 32, 3, 10960),),
}
DECODE_SCALE_BYTES = 8  # of shared memory more for each key of a tile, where keys and values are quantised

# decode_mma: (bytes of a stored number, columns of the wider of keys and values) to tiles for few queries of a
# key/value head, then for more: queries, tiles of 16 keys that a warp has under way, warps, blocks that a
# multiprocessor is to hold, bytes of shared memory. None was timed on a GPU yet; none spills.
DecodeTable = dict[tuple[int, int], tuple[tuple[int, int, int, int, int], ...]]
DECODE_MMA: DecodeTable = {
    (2, 64): ((16, 3, 4, 4, 55680), (32, 3, 4, 3, 57856)),
    (2, 128): ((16, 2, 4, 3, 74112), (32, 2, 4, 2, 79360)),
    (2, 256): ((16, 2, 2, 1, 76160),),
    (1, 64): ((16, 3, 4, 4, 32640), (32, 4, 4, 2, 43520)),
    (1, 128): ((16, 2, 4, 3, 42368), (32, 4, 4, 2, 80384)),
    (1, 256): ((16, 2, 2, 1, 43904),),
}

# decode_fma: the same, with tiles of 8 keys. Blocks are the most that compile without a spill on every architecture, or
# that 9.0 has shared memory for (8 queries of 64 columns with a fourth: 20 to 52 bytes).
DECODE_FMA: DecodeTable = {
    (4, 64): ((4, 3, 4, 4, 49856), (8, 3, 4, 3, 50368)),
    (4, 128): ((4, 2, 4, 3, 66240), (8, 2, 4, 3, 66752)),
    (4, 256): ((4, 2, 3, 2, 98880), (8, 2, 3, 2, 99264)),
}

# Attention with at most so many queries for a key/value head is worked on as decoding is, where that reads keys no more
# often: tiles of all of them in place of a tile of 64 or 128 rows for each head. Not timed on a GPU yet.
FEW_QUERIES = 64
# Keys of a part of the forward pass, at the least: reading them takes about as long as merging it. Not timed either.
PART_KEYS_LEAST = 256

# A bias gradient of few tiles is summed in parts by as many blocks as this for each multiprocessor.
BIAS_BLOCKS_PER_SM = 4
