#include "clocks.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "state.hpp"

namespace machine {

namespace {

std::vector<Clock*> free_clocks;
uint32_t clock_lanes;     // up to the last warp's end
ClockRef first_clock;

Clock* new_clock() {
    Clock* clock;
    if (free_clocks.empty()) {
        clock = static_cast<Clock*>(std::malloc(offsetof(Clock, epoch) + clock_lanes * sizeof(uint32_t)));
    } else {
        clock = free_clocks.back();
        free_clocks.pop_back();
    }
    clock->references = 1;
    return clock;
}

ClockRef copy_of(const ClockRef& clock) {
    Clock* copy = new_clock();
    std::memcpy(copy->epoch, clock->epoch, clock_lanes * sizeof(uint32_t));
    return ClockRef(copy);
}

bool raise(uint32_t* epochs, const uint32_t* others) {
    uint32_t raised = 0;
    for (uint32_t i = 0; i < clock_lanes; ++i) {
        raised |= others[i] > epochs[i];
        epochs[i] = std::max(epochs[i], others[i]);
    }
    return raised;
}

}  // namespace

void Clock::find_least() {
    least = ~0u;
    for (uint32_t warp = 0; warp < clock_lanes / WARP_LANES; ++warp) {
        uint32_t smallest = ~0u;
        for (uint32_t lane = 0; lane < WARP_LANES; ++lane)
            smallest = std::min(smallest, epoch[warp * WARP_LANES + lane]);
        warp_least[warp] = smallest;
        least = std::min(least, smallest);
    }
}

void ClockRef::release(Clock* clock) { free_clocks.push_back(clock); }

void start_clocks(uint32_t threads) {
    first_clock = ClockRef();
    uint32_t lanes = (threads + WARP_LANES - 1) / WARP_LANES * WARP_LANES;
    if (lanes != clock_lanes) {  // those of other sizes; none is in use between launches
        for (Clock* clock : free_clocks) std::free(clock);
        free_clocks.clear();
    }
    clock_lanes = lanes;
    Clock* clock = new_clock();
    std::fill(clock->epoch, clock->epoch + threads, 0);
    std::fill(clock->epoch + threads, clock->epoch + lanes, ~0u);
    clock->find_least();
    first_clock = ClockRef(clock);
}

ClockRef no_knowledge() { return first_clock; }

void join(ClockRef& known, const ClockRef& other) {
    if (!other || known.get() == other.get()) return;
    if (!known) {
        known = other;
        return;
    }
    ClockRef joined = copy_of(known);
    if (!raise(joined->epoch, other->epoch)) return;
    joined->find_least();
    known = joined;
}

void join(Knowledge& known, const Knowledge& other) {
    for (const auto& [block, clock] : other) join(known[block], clock);
}

Knowledge release_of(Thread& thread) {
    ClockRef clock = copy_of(thread.clock);
    clock->epoch[thread.index] = thread.epoch;
    clock->find_least();
    Knowledge released = thread.foreign;
    released[thread.block->number] = clock;
    thread.epoch = ++thread.block->epochs;
    return released;
}

void acquire(Thread& thread, const Knowledge& released) {
    for (const auto& [block, clock] : released) {
        if (block == thread.block->number) join(thread.clock, clock);
        else join(thread.foreign[block], clock);
    }
}

bool knows(const Thread& thread, uint32_t block, uint32_t other, uint32_t epoch) {
    if (block == thread.block->number) return other == thread.index || thread.clock->epoch[other] >= epoch;
    auto found = thread.foreign.find(block);
    return found != thread.foreign.end() && found->second && found->second->epoch[other] >= epoch;
}

void Gathering::add(const Thread& thread) {
    if (!together_) {
        together_ = copy_of(thread.clock);
        last_ = thread.clock;
    } else if (thread.clock.get() != last_.get()) {
        raise(together_->epoch, thread.clock->epoch);
        last_ = thread.clock;
    }
    together_->epoch[thread.index] = std::max(together_->epoch[thread.index], thread.epoch);
    if (!thread.foreign.empty()) join(foreign_, thread.foreign);
}

void Gathering::close() { together_->find_least(); }

void Gathering::give(Thread& thread, uint32_t epoch) const {
    thread.clock = together_;
    thread.epoch = epoch;
    if (!foreign_.empty()) join(thread.foreign, foreign_);
}

}  // namespace machine
