// The machine's state: threads on fibers, their warps and blocks, and the launch they belong to.
#pragma once
#include <deque>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "clocks.hpp"
#include "machine.hpp"
#include "shared_cells.hpp"

namespace machine {

constexpr uint32_t BARRIERS = 16;
constexpr int POISON = 0xff;  // of bytes nobody has written: a NaN in every floating-point format
constexpr size_t PAGE_BYTES = 4096;

struct Block;
struct Warp;

enum class State : uint8_t { ready, waiting, exited };

struct Copy {  // one cp.async that has not landed
    uint32_t to;
    const uint8_t* from;
    uint32_t bytes, source_bytes;
    Site site;
    bool landed;
};

// What a thread has released by its last fence and what its relaxed reads would let it acquire, by scope.
struct FenceState {
    Knowledge released_cta, released_gpu, seen_cta, seen_gpu;
};

// The last strong read that changed nothing, to tell a loop that waits for another thread.
struct Spin {
    const uint8_t* data = nullptr;
    uint32_t bytes = 0, times = 0;
    uint8_t value[16] = {};
    Site site = nullptr;
};

struct Thread {
    Registers registers;
    void* context;              // where its fiber goes on
    Block* block;
    Warp* warp;
    uint32_t index, lane_bit;   // within the block; within the warp
    uint32_t slot;              // among all resident threads: its fiber
    uint32_t epoch;             // of what it does now
    ClockRef clock;             // what it knows of its block
    Knowledge foreign;          // and of others
    State state;
    Site waits_at;
    std::string (*waits_for)(const Thread&);
    uint64_t wait_detail;
    std::vector<Copy> open_copies;
    std::deque<std::vector<Copy>> copy_groups;
    FenceState fences;
    Spin spin;

    uint64_t identity() const;  // among all threads of the grid
};

struct Meeting {  // lanes of one warp on their way into one collective
    uint32_t mask, arrived;
    Site site;
    const char* name;
    bool (*finish)(Meeting& meeting, Warp& warp);  // false: the lanes wait on, and `waits_for` says for what
    void* arguments[WARP_LANES];                   // null for lanes that have not come
};

struct Warp {
    Block* block;
    Thread* threads;            // its first
    uint32_t existing, exited;  // lanes
    std::vector<Meeting> meetings;
};

struct BarrierVotes {  // bar.red: of one phase
    uint32_t threads, trues;
};

struct Barrier {
    uint32_t expected = 0, arrived = 0;  // warps
    Gathering gathering;
    BarrierVotes votes = {0, 0};
    std::vector<std::pair<Thread*, BarrierVotes*>> waiting;  // and where each is told the votes
};

// What releases left at an address, for those who read it.
struct SyncPoint {
    Knowledge gpu, cta;
    uint32_t cta_block = ~0u;   // whose threads `cta` is for
    uint64_t releaser = ~0ull;  // identity of the last that released here by its access, not by a fence before
};
using SyncPoints = std::unordered_map<const uint8_t*, SyncPoint>;

struct Block {
    Dim3 coordinates;
    uint32_t number;            // in the grid
    uint32_t exited;            // threads
    uint32_t epochs;            // the youngest in use
    uint8_t* shared;
    SharedCells cells;
    SyncPoints sync_points;     // in shared memory
    Barrier barriers[BARRIERS];
    std::vector<Thread> threads;
    std::vector<Warp> warps;
};

struct Launch {
    MachineConfig config;
    Kernel kernel;
    const void* params;
    uint64_t number;            // of launches
    uint32_t shared_base, shared_bytes;
    bool checks;
    uint32_t threads, warps;    // of a block
    uint64_t steps_left;
    SyncPoints sync_points;     // in global memory
    std::vector<Block> blocks;  // the resident ones
    MachineCounters counters;
};

inline uint64_t Thread::identity() const { return uint64_t{block->number} << 32 | index; }

extern Launch launch;
extern std::mutex one_at_a_time;  // the machine is one device: calls from several threads of the host queue up
extern Thread* current;         // the thread that runs now; null on the host's side

Dim3 block_coordinates(uint32_t number);

}  // namespace machine
