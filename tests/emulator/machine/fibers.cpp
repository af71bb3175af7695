#include "fibers.hpp"

#include <sys/mman.h>

#include <cstdlib>
#include <cstring>
#include <map>

#include "context.hpp"
#include "findings.hpp"
#include "warps.hpp"

namespace machine {

namespace {

constexpr size_t STACK_BYTES = 256 * 1024;
constexpr uint32_t MOST_IDLE_ROUNDS = 100;

uint8_t* stacks;
uint32_t stack_count;
void* host_context;
uint32_t slot_before;                 // of the thread that ran last
Block* block_ended;
bool stopped;
std::vector<uint64_t> ready;          // one bit per slot
std::vector<Thread*> of_slot;
std::vector<Thread*> spinning;
uint64_t progress_before;             // when those that spin were last woken
uint32_t idle_rounds;                 // how often they were since something changed
uint64_t random_state;

uint8_t* stack_of(uint32_t slot) { return stacks + slot * STACK_BYTES; }

// The first ready slot at or after `from`, or at or before it, going around; -1 if there is none.
int next_ready(uint32_t from) {
    uint32_t words = ready.size(), word = from / 64;
    uint64_t bits = ready[word] & (~0ull << (from % 64));
    for (uint32_t i = 0; i <= words; ++i) {
        if (bits) return word * 64 + __builtin_ctzll(bits);
        word = word + 1 == words ? 0 : word + 1;
        bits = ready[word];
    }
    return -1;
}

int previous_ready(uint32_t from) {
    uint32_t words = ready.size(), word = from / 64;
    uint64_t bits = ready[word] & (~0ull >> (63 - from % 64));
    for (uint32_t i = 0; i <= words; ++i) {
        if (bits) return word * 64 + 63 - __builtin_clzll(bits);
        word = word == 0 ? words - 1 : word - 1;
        bits = ready[word];
    }
    return -1;
}

// Who runs after the thread in `slot`.
int pick(uint32_t slot) {
    uint32_t slots = of_slot.size();
    switch (launch.config.schedule) {
        case 0: return next_ready(slot + 1 == slots ? 0 : slot + 1);
        case 1: return previous_ready(slot == 0 ? slots - 1 : slot - 1);
        default: return next_ready(random_number() % slots);
    }
}

// What grows whenever a thread does something that others may wait for.
uint64_t progress() {
    const MachineCounters& done = launch.counters;
    return done.global_stores + done.shared_stores + done.collectives + done.barriers + done.copies;
}

// No other thread can run: wakes those that spin, as one of them may only count its turns, or its bytes have changed.
// False once they have been woken often enough without any progress.
bool wake_spinning() {
    bool changed = progress() != progress_before;
    for (Thread* thread : spinning) {
        Spin& spin = thread->spin;
        changed |= std::memcmp(spin.data, spin.value, spin.bytes) != 0;
        spin.times = 0;
        make_ready(*thread);
    }
    progress_before = progress();
    idle_rounds = changed ? 0 : idle_rounds + 1;
    bool woken = !spinning.empty() && idle_rounds < MOST_IDLE_ROUNDS;
    if (woken) spinning.clear();
    return woken;
}

std::string waiting_text() {
    std::string result;
    for (const Block& block : launch.blocks) {
        std::map<std::string, std::vector<uint32_t>> groups;
        std::vector<uint32_t> exited;
        for (const Thread& thread : block.threads) {
            if (thread.state == State::exited) exited.push_back(thread.index);
            else groups[place(thread.waits_at) + " " + thread.waits_for(thread)].push_back(thread.index);
        }
        if (groups.empty()) continue;
        const Dim3& at = block.coordinates;
        std::string head = text("\n    block (%u,%u,%u) threads ", at.x, at.y, at.z);
        for (const auto& [what, threads] : groups) result += head + threads_text(threads) + " wait at " + what;
        if (!exited.empty()) result += head + threads_text(exited) + " have exited";
    }
    return result;
}

void report_deadlock() {
    current = nullptr;  // it is not the finding of one thread
    report("deadlock", nullptr, "no thread can run:%s", waiting_text().c_str());
}

// Leaves the running fiber for the next one that can run.
void switch_away() {
    Thread* from = current;
    int slot = pick(from->slot);
    if (slot < 0 && wake_spinning()) slot = pick(from->slot);
    if (slot < 0) {
        report_deadlock();
        leave_launch();
    }
    if (static_cast<uint32_t>(slot) == from->slot) return;
    ++launch.counters.switches;
    current = of_slot[slot];
    registers = &current->registers;
    switch_context(&from->context, current->context);
}

void mark_waiting(Thread& thread) { ready[thread.slot / 64] &= ~(1ull << (thread.slot % 64)); }

std::string describe_spin(const Thread& thread) {
    return text("(repeats a read of %u bytes that no thread will change)", thread.spin.bytes);
}

[[noreturn]] void fiber_main() {
    launch.kernel(launch.params);
    exit_thread();
}

}  // namespace

Thread* current;
const Registers* registers;

void exit_thread() {
    Thread& thread = *current;
    lane_exits(thread);
    thread.state = State::exited;
    mark_waiting(thread);
    if (++thread.block->exited == launch.threads) {
        block_ended = thread.block;
        slot_before = thread.slot;
        switch_context(&thread.context, host_context);
    }
    switch_away();
    std::abort();
}

uint64_t random_number() {
    random_state = random_state * 6364136223846793005ull + 1442695040888963407ull;
    return random_state >> 33;
}

bool prepare_fibers(uint32_t count) {
    if (count > stack_count) {
        if (stacks) munmap(stacks, stack_count * STACK_BYTES);
        void* memory = mmap(nullptr, count * STACK_BYTES, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        stacks = memory == MAP_FAILED ? nullptr : static_cast<uint8_t*>(memory);
        stack_count = stacks ? count : 0;
        if (!stacks) return false;
        for (uint32_t slot = 0; slot < count; ++slot) mprotect(stack_of(slot), PAGE_BYTES, PROT_NONE);
    }
    ready.assign((count + 63) / 64, 0);
    of_slot.assign(count, nullptr);
    spinning.clear();
    slot_before = launch.config.schedule == 1 ? 0 : count - 1;  // so that the first or the last begins
    block_ended = nullptr;
    idle_rounds = 0;
    stopped = false;
    random_state = launch.config.seed * 2654435761ull + 88172645463325252ull;
    return true;
}

void start_fiber(Thread& thread) {
    of_slot[thread.slot] = &thread;
    size_t stagger = thread.slot % 16 * 192;  // so that the fibers' frames do not share the same cache sets
    thread.context = new_context(stack_of(thread.slot), STACK_BYTES - stagger, fiber_main);
    make_ready(thread);
}

bool run_fibers() {
    block_ended = nullptr;
    int slot = pick(slot_before);
    if (slot < 0 && wake_spinning()) slot = pick(slot_before);
    if (slot < 0) {
        report_deadlock();
        return false;
    }
    current = of_slot[slot];
    registers = &current->registers;
    switch_context(&host_context, current->context);
    return !stopped;
}

Block* ended_block() { return block_ended; }

void make_ready(Thread& thread) {
    thread.state = State::ready;
    ready[thread.slot / 64] |= 1ull << (thread.slot % 64);
}

void wait(Site site, std::string (*describe)(const Thread&), uint64_t detail) {
    Thread& thread = *current;
    thread.state = State::waiting;
    thread.waits_at = site;
    thread.waits_for = describe;
    thread.wait_detail = detail;
    mark_waiting(thread);
    switch_away();
}

void yield() { switch_away(); }

void spin_until_changed(Site site) {
    spinning.push_back(current);
    wait(site, describe_spin, 0);
}

void leave_launch() {
    stopped = true;
    void* abandoned;
    switch_context(&abandoned, host_context);
    std::abort();
}

bool on_own_stack(uint64_t address) {
    return address - reinterpret_cast<uint64_t>(stack_of(current->slot)) < STACK_BYTES;
}

}  // namespace machine
