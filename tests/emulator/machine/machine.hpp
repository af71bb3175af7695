// What a translated kernel may ask of the machine: each PTX instruction that touches memory or other threads is one
// call.
//
// A kernel is a C++ function run once per CUDA thread, each on its own fiber. Nothing here is inline: kernels are
// compiled without optimisation and linked against the machine's optimised library. Addresses are those the kernel
// computes: global ones are host addresses, shared ones lie in a 32-bit window that starts at shared_base().
#pragma once
#include <cstddef>
#include <cstdint>

namespace machine {

// ---- where an instruction stands -----------------------------------------------------------------------------------
struct Loc {
    const char* file;  // as in the .file directive
    int line;          // of the source, from .loc
    int ptx_line;      // of the PTX text
};
using Site = const Loc*;  // one static object per instruction: lanes meet in a collective only at the same one

using Kernel = void (*)(const void* params);  // params: the bytes of .param space, 64-byte aligned
[[noreturn]] void exit_thread();    // `exit` inside a .func; in the kernel itself `ret` and `exit` are `return`
[[noreturn]] void trap(Site site);  // a finding that ends the launch
[[noreturn]] void fault(const char* sentence, Site site);  // the same for what only the translated code can see
void step(Site site);               // call on every backward branch: ends a launch that loops for ever
void nanosleep(Site site);          // lets the other threads run

// ---- special registers ---------------------------------------------------------------------------------------------
struct Dim3 {
    uint32_t x, y, z;
};
struct Registers {
    Dim3 tid, ctaid;
    uint32_t laneid, warpid;
};
extern const Registers* registers;  // of the thread that runs now: %tid, %ctaid, %laneid, %warpid
extern Dim3 ntid, nctaid;           // %ntid, %nctaid

// ---- plain loads and stores: BYTES is 1, 2, 4, 8 or 16, the whole vector; the address must be a multiple of it -----
template <uint32_t BYTES>
void load_global(void* to, uint64_t address, Site site);
template <uint32_t BYTES>
void load_global_nc(void* to, uint64_t address, Site site);  // ld.global.nc: a finding if this launch writes the array
template <uint32_t BYTES>
void store_global(uint64_t address, const void* from, Site site);
template <uint32_t BYTES>
void load_shared(void* to, uint32_t address, Site site);
template <uint32_t BYTES>
void store_shared(uint32_t address, const void* from, Site site);
template <uint32_t BYTES>
void load_generic(void* to, uint64_t address, Site site);  // shared window, own stack (local memory) or global
template <uint32_t BYTES>
void store_generic(uint64_t address, const void* from, Site site);

uint32_t shared_base();   // first address of shared memory: static arrays from here on, then the dynamic part
uint32_t shared_bytes();  // %total_smem_size: static and dynamic bytes of the launch
constexpr uint64_t SHARED_WINDOW = 1ull << 56;  // where generic addresses see it
constexpr uint64_t shared_to_generic(uint64_t address) { return SHARED_WINDOW + address; }  // cvta.shared
constexpr uint64_t generic_to_shared(uint64_t address) { return address - SHARED_WINDOW; }  // cvta.to.shared
bool is_shared(uint64_t generic);               // isspacep.shared
bool is_global(uint64_t generic);               // isspacep.global
bool is_local(uint64_t generic);                // isspacep.local

// A `.global` or `.const` array that the kernel's file defines: a static object of this type makes it readable.
struct StaticArray {
    StaticArray(const char* name, const void* data, size_t bytes, bool writable = false);
    ~StaticArray();
    const void* data;
};

// ---- strong accesses, atomics, fences ------------------------------------------------------------------------------
enum class Space { global, shared, generic };
enum class Order { relaxed, acquire, release, acq_rel, sc };  // no qualifier on atom and red means relaxed
enum class Scope { cta, gpu, sys };                           // no qualifier on atom and red means gpu
enum class Op { add, min, max, inc, dec, exch, and_, or_, xor_ };

// ld.relaxed, ld.acquire (and ld.volatile as relaxed.sys); st.relaxed, st.release (st.volatile). BYTES as above.
template <uint32_t BYTES>
void load_strong(Space space, void* to, uint64_t address, Order order, Scope scope, Site site);
template <uint32_t BYTES>
void store_strong(Space space, uint64_t address, const void* from, Order order, Scope scope, Site site);
// atom and red: the value before. T: uint32_t, int32_t, uint64_t, int64_t, float, double (float, double: add, exch).
template <class T>
T atomic(Op op, Space space, uint64_t address, T value, Order order, Scope scope, Site site);
// atom.cas: T is uint32_t or uint64_t (b32, b64).
template <class T>
T atomic_cas(Space space, uint64_t address, T expected, T desired, Order order, Scope scope, Site site);
// fence.acq_rel, fence.sc; membar.cta/gl/sys is sc at cta/gpu/sys. A fence.sc orders no more than fence.acq_rel does.
void fence(Order order, Scope scope, Site site);

// ---- warp collectives: every lane of `mask` must come to the same site with the same mask --------------------------
enum class Shuffle { up, down, bfly, idx };
// shfl.sync.MODE.b32 d|p, a, b, c, mask: c holds the clamp (bits 0-4) and the segment mask (bits 8-12).
uint32_t shfl(Shuffle mode, uint32_t a, uint32_t b, uint32_t c, uint32_t mask, bool* p, Site site);  // p may be null
bool vote_all(bool value, uint32_t mask, Site site);
bool vote_any(bool value, uint32_t mask, Site site);
bool vote_uni(bool value, uint32_t mask, Site site);
uint32_t ballot(bool value, uint32_t mask, Site site);
uint32_t redux(Op op, uint32_t value, uint32_t mask, Site site);        // redux.sync: add, and, or, xor; min, max.u32
int32_t redux_signed(Op op, int32_t value, uint32_t mask, Site site);   // min, max.s32
uint32_t match_any(uint64_t value, uint32_t mask, Site site);           // match.any.sync.b32 and .b64
uint32_t match_all(uint64_t value, uint32_t mask, bool* p, Site site);  // match.all.sync
void syncwarp(uint32_t mask, Site site);                                // bar.warp.sync: alone orders memory
uint32_t activemask();                                                  // the lanes that have not exited

// ---- matrices of a warp, all of whose lanes take part ---------------------------------------------------------------
// ldmatrix.m8n8.xCOUNT(.trans).b16: lane 8 i + r gives the shared address of row r of matrix i; `to` gets COUNT words.
void ldmatrix(uint32_t* to, uint32_t address, uint32_t count, bool transposed, Site site);
// mma.m16n8k8 and m16n8k16.row.col.f32 of two 16-bit formats: 4 words of d and c, DEPTH / 4 of a, DEPTH / 8 of b.
void mma_m16n8(float* d, const uint32_t* a, const uint32_t* b, const float* c, uint32_t depth, bool bfloat, Site site);

// ---- barriers: id 0-15; count in threads, a multiple of 32; 0 stands for all threads of the block -------------------
void barrier_sync(uint32_t id, uint32_t count, Site site);    // bar.sync, barrier.sync(.aligned)
void barrier_arrive(uint32_t id, uint32_t count, Site site);  // bar.arrive
enum class Reduce { popc, and_, or_ };
uint32_t barrier_red(Reduce op, uint32_t id, uint32_t count, bool value, Site site);  // bar.red; and, or give 0 or 1

// ---- cp.async: the bytes land in the wait that must cover them, not before -----------------------------------------
// bytes: 4, 8 or 16; source_bytes of them are read, the rest become zero (ignore-src: 0).
void cp_async(uint32_t to, uint64_t from, uint32_t bytes, uint32_t source_bytes, Site site);
void cp_async_commit(Site site);
void cp_async_wait(uint32_t groups, Site site);  // cp.async.wait_group: all but the newest `groups` groups have landed
void cp_async_wait_all(Site site);               // cp.async.wait_all: committed or not

// ---- number formats: to nearest even, subnormals exact; a NaN becomes the canonical one of the target ---------------
float f32_from_f16(uint16_t bits);
float f32_from_bf16(uint16_t bits);
float f32_from_e4m3(uint8_t bits);
uint16_t f16_from_f32(float value);
uint16_t f16_from_f64(double value);
uint16_t bf16_from_f32(float value);
uint16_t bf16_from_f64(double value);
uint8_t e4m3_from_f32(float value);  // satfinite: beyond 448 becomes 448, infinity too

}  // namespace machine

// ---- the host's side (ctypes) ---------------------------------------------------------------------------------------
extern "C" {
struct MachineConfig {
    uint32_t shared_base;      // 0x400 as on hardware, or 0x480: what needs more than 128-byte alignment then shows
    uint32_t schedule;         // of threads: 0 ascending, 1 descending, 2 random by `seed`
    uint32_t seed;
    uint32_t block_order;      // 0 ascending, 1 descending, 2 random by `seed`
    uint32_t resident_blocks;  // how many run together; the next starts when one has ended
    uint32_t checks;           // 1: the happens-before checker; bounds, collectives and copies are checked always
    uint32_t landing;          // of cp.async: MACHINE_LANDS_...
    uint64_t most_steps;       // backward branches and waits before a launch is held to hang; 0: 10^9
};
enum { MACHINE_LANDS_LATE, MACHINE_LANDS_AT_ONCE, MACHINE_LANDS_RANDOMLY };
enum { MACHINE_READ_ONLY = 1, MACHINE_WRITE_ONCE = 2, MACHINE_BETWEEN_BLOCKS = 4, MACHINE_SPARSE = 8 };
struct MachineCounters {  // of the last launch
    uint64_t switches, global_loads, global_stores, shared_loads, shared_stores, atomics, collectives, barriers, copies;
    uint64_t mmas, matrix_loads, bank_conflicts;  // matrices loaded, and rows of one that came after another's banks
};

// An array of the device, between guard pages: NaN bytes, or with MACHINE_SPARSE untouched zero pages (5 GB cost
// nothing). MACHINE_WRITE_ONCE: a byte stored twice in one launch is a finding. MACHINE_BETWEEN_BLOCKS: threads of
// any block may read and write it, so the happens-before checker watches it as it does shared memory. Null where no
// memory is left.
void* machine_create(uint64_t bytes, const char* name, uint32_t flags);
int machine_destroy(void* array);                                        // 0, or 1 if it is no array of the machine
int machine_describe(void* array, const char* name, uint32_t flags);     // new name (null: keep) and flags; 0 or 1
void machine_configure(const MachineConfig* config);                     // for all launches from now on
// Runs the grid; shared_bytes: static and dynamic. Returns the number of findings (0: clean), -1 for a refused
// launch.
int64_t machine_launch(machine::Kernel kernel, const uint32_t* grid, const uint32_t* block, uint32_t shared_bytes,
                       const void* params);
const char* machine_report(void);                                        // findings of the last launch, one a line
uint64_t machine_findings(const char* kind);                             // how many of one kind the last launch had
void machine_counters(MachineCounters* counters);
}
