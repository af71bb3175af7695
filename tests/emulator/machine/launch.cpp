// A launch: blocks become resident in their order, run, and are looked over when they end.
#include <algorithm>
#include <cstring>
#include <numeric>

#include "fibers.hpp"
#include "findings.hpp"

namespace machine {

namespace {

constexpr uint32_t MOST_SHARED_BYTES = 227 * 1024;
constexpr uint64_t MOST_STEPS = 1000000000, MOST_BLOCKS = 0x7fffffff;

const MachineConfig DEFAULT_CONFIG = {0x400, 0, 0, 0, 1, 1, 0};
MachineConfig config = DEFAULT_CONFIG;
std::vector<uint8_t> shared_memory;

uint64_t blocks_of_grid() { return uint64_t{nctaid.x} * nctaid.y * nctaid.z; }

// What is wrong with a launch; empty if nothing is.
std::string refusal(const uint32_t* grid, const uint32_t* block, uint32_t shared_bytes) {
    for (int axis = 0; axis < 3; ++axis)
        if (!grid[axis] || !block[axis] || (axis && grid[axis] > 65535))
            return text("grid (%u,%u,%u) of blocks (%u,%u,%u): none may be 0, and the grid's y and z are at most 65535",
                        grid[0], grid[1], grid[2], block[0], block[1], block[2]);
    uint64_t threads = uint64_t{block[0]} * block[1] * block[2], blocks = uint64_t{grid[0]} * grid[1] * grid[2];
    if (threads > MOST_THREADS || block[2] > 64)
        return text("blocks (%u,%u,%u); a block has at most 1024 threads, 64 of them along z", block[0], block[1],
                    block[2]);
    if (blocks > MOST_BLOCKS) return text("%llu blocks are more than this machine counts", (unsigned long long)blocks);
    if (shared_bytes > MOST_SHARED_BYTES)
        return text("%u bytes of shared memory; a block has at most %u", shared_bytes, MOST_SHARED_BYTES);
    if (config.shared_base % 128 || config.schedule > 2 || config.block_order > 2 || !config.resident_blocks)
        return "the configuration: a shared base of whole 128 bytes, a schedule and a block order from 0 to 2, and at "
               "least one resident block are needed";
    return "";
}

void set_up(Kernel kernel, const uint32_t* grid, const uint32_t* block, uint32_t shared_bytes, const void* params) {
    ntid = {block[0], block[1], block[2]};
    nctaid = {grid[0], grid[1], grid[2]};
    launch.config = config;
    launch.kernel = kernel;
    launch.params = params;
    ++launch.number;
    launch.shared_base = config.shared_base;
    launch.shared_bytes = shared_bytes;
    launch.checks = config.checks != 0;
    launch.threads = ntid.x * ntid.y * ntid.z;
    launch.warps = (launch.threads + WARP_LANES - 1) / WARP_LANES;
    launch.steps_left = config.most_steps ? config.most_steps : MOST_STEPS;
    launch.counters = MachineCounters();
    start_clocks(launch.threads);
    launch.blocks.resize(std::min<uint64_t>(config.resident_blocks, blocks_of_grid()));
    shared_memory.resize(launch.blocks.size() * size_t{MOST_SHARED_BYTES});
}

void forget_threads(Block& block) {
    block.sync_points.clear();
    std::fill(block.barriers, block.barriers + BARRIERS, Barrier());
    block.threads.clear();
    block.warps.clear();
}

// Makes the block resident in a slot: poisoned shared memory, every thread at its start.
void start_block(uint32_t slot, uint32_t number, bool first_of_launch) {
    Block& block = launch.blocks[slot];
    block.coordinates = block_coordinates(number);
    block.number = number;
    block.exited = 0;
    block.epochs = 1;
    block.shared = shared_memory.data() + slot * size_t{MOST_SHARED_BYTES};
    std::memset(block.shared, POISON, launch.shared_bytes);
    if (launch.checks) block.cells.start(launch.shared_bytes, launch.warps, first_of_launch);
    forget_threads(block);
    block.threads.resize(launch.threads);
    block.warps.resize(launch.warps);
    for (uint32_t index = 0; index < launch.threads; ++index) {
        Thread& thread = block.threads[index];
        const uint32_t lane = index % WARP_LANES;
        Warp& warp = block.warps[index / WARP_LANES];
        if (!lane) warp.threads = &thread;
        warp.block = &block;
        warp.existing |= 1u << lane;
        const Dim3 tid{index % ntid.x, index / ntid.x % ntid.y, index / (ntid.x * ntid.y)};
        thread.registers = {tid, block.coordinates, lane, index / WARP_LANES};
        thread.block = &block;
        thread.warp = &warp;
        thread.index = index;
        thread.lane_bit = 1u << lane;
        thread.slot = slot * launch.threads + index;
        thread.epoch = 1;
        thread.clock = no_knowledge();
        start_fiber(thread);
    }
}

// Where the thread issued a copy that has not landed; null if all have.
Site unlanded(const Thread& thread) {
    if (!thread.open_copies.empty()) return thread.open_copies.front().site;
    for (const std::vector<Copy>& group : thread.copy_groups)
        if (!group.empty()) return group.front().site;
    return nullptr;
}

// What a block must not leave behind.
void end_block(Block& block) {
    std::vector<uint32_t> copying;
    Site site = nullptr;
    for (const Thread& thread : block.threads) {
        if (!unlanded(thread)) continue;
        site = unlanded(thread);
        copying.push_back(thread.index);
    }
    const Dim3& at = block.coordinates;
    if (site)
        report("left-over", site, "block (%u,%u,%u) threads %s exit without a wait for their cp.async", at.x, at.y,
               at.z, threads_text(copying).c_str());
    for (uint32_t id = 0; id < BARRIERS; ++id)
        if (block.barriers[id].arrived)
            report("left-over", nullptr,
                   "block (%u,%u,%u) ends with %u arrivals at barrier %u, which waits for %u warps", at.x, at.y, at.z,
                   block.barriers[id].arrived, id, block.barriers[id].expected);
}

std::vector<uint32_t> order_of_blocks() {
    std::vector<uint32_t> order(blocks_of_grid());
    std::iota(order.begin(), order.end(), 0);
    if (config.block_order == 1) std::reverse(order.begin(), order.end());
    if (config.block_order == 2)
        for (size_t left = order.size(); left > 1; --left) std::swap(order[left - 1], order[random_number() % left]);
    return order;
}

void run_blocks() {
    const std::vector<uint32_t> order = order_of_blocks();
    size_t started = 0, ended = 0;
    for (; started < launch.blocks.size(); ++started) start_block(started, order[started], true);
    while (ended < order.size() && run_fibers()) {
        Block& block = *ended_block();
        const uint32_t slot = &block - launch.blocks.data();
        current = nullptr;
        end_block(block);
        ++ended;
        if (started < order.size()) start_block(slot, order[started++], false);
    }
    current = nullptr;
    for (Block& block : launch.blocks) forget_threads(block);
    launch.sync_points.clear();
}

}  // namespace

Launch launch;
std::mutex one_at_a_time;
Dim3 ntid, nctaid;

Dim3 block_coordinates(uint32_t number) {
    return {number % nctaid.x, number / nctaid.x % nctaid.y, number / nctaid.x / nctaid.y};
}

void step(Site site) {
    if (--launch.steps_left == 0) stop("hang", site, "the launch has made as many loop steps as it may");
}

void nanosleep(Site) { yield(); }

void trap(Site site) { stop("trap", site, "trap"); }

void fault(const char* sentence, Site site) { stop("fault", site, "%s", sentence); }

}  // namespace machine

extern "C" {

void machine_configure(const MachineConfig* wanted) {
    std::lock_guard<std::mutex> lock(machine::one_at_a_time);
    machine::config = *wanted;
}

int64_t machine_launch(machine::Kernel kernel, const uint32_t* grid, const uint32_t* block, uint32_t shared_bytes,
                       const void* params) {
    using namespace machine;
    std::lock_guard<std::mutex> lock(one_at_a_time);
    clear_findings();
    std::string reason = refusal(grid, block, shared_bytes);
    if (reason.empty()) {
        set_up(kernel, grid, block, shared_bytes, params);
        if (!prepare_fibers(launch.blocks.size() * launch.threads)) reason = "no memory for the threads' stacks";
    }
    if (!reason.empty()) {
        report("refused", nullptr, "%s", reason.c_str());
        return -1;
    }
    FaultGuard guard;
    run_blocks();
    return int64_t(count_findings(""));
}

const char* machine_report(void) { return machine::findings_report(); }
uint64_t machine_findings(const char* kind) { return machine::count_findings(kind); }
void machine_counters(MachineCounters* counters) { *counters = machine::launch.counters; }

}  // extern "C"
