// Vector clocks. A thread's accesses carry its epoch; a clock says up to which epoch each thread of a block is known.
// Clocks never change once made and are shared by all who synchronised together, so that a barrier of n threads costs
// O(n) in all, and the epochs of threads that met last are the same number.
#pragma once
#include <cstdint>
#include <map>
#include <utility>

namespace machine {

struct Thread;

constexpr uint32_t WARP_LANES = 32, MOST_THREADS = 1024, MOST_WARPS = MOST_THREADS / WARP_LANES;

struct Clock {
    uint32_t references;
    uint32_t least;                    // of all threads: what is not younger is known whoever did it
    uint32_t warp_least[MOST_WARPS];   // of the lanes of each warp
    uint32_t epoch[MOST_THREADS];  // allocated up to the last warp of the block; lanes that do not exist: the most

    void find_least();  // after `epoch` was filled
};

// A counted reference to a clock; null knows nothing.
class ClockRef {
public:
    ClockRef() = default;
    explicit ClockRef(Clock* clock) : clock_(clock) {}  // takes over the one reference a new clock has
    ClockRef(const ClockRef& other) : clock_(other.clock_) {
        if (clock_) ++clock_->references;
    }
    ClockRef(ClockRef&& other) noexcept : clock_(std::exchange(other.clock_, nullptr)) {}
    ClockRef& operator=(ClockRef other) noexcept {
        std::swap(clock_, other.clock_);
        return *this;
    }
    ~ClockRef() {
        if (clock_ && --clock_->references == 0) release(clock_);
    }
    Clock* operator->() const { return clock_; }
    Clock* get() const { return clock_; }
    explicit operator bool() const { return clock_ != nullptr; }

private:
    static void release(Clock* clock);
    Clock* clock_ = nullptr;
};

// Knowledge of any blocks, by block number: what a release leaves behind and an acquire takes up.
using Knowledge = std::map<uint32_t, ClockRef>;

void start_clocks(uint32_t threads);  // sizes the clocks of a launch
ClockRef no_knowledge();  // the clock of a block's first moment
void join(ClockRef& known, const ClockRef& other);
void join(Knowledge& known, const Knowledge& other);

Knowledge release_of(Thread& thread);  // all that the thread did and knows; starts its next epoch
void acquire(Thread& thread, const Knowledge& released);
bool knows(const Thread& thread, uint32_t block, uint32_t other, uint32_t epoch);

// What the threads that come to one meeting know together.
class Gathering {
public:
    void add(const Thread& thread);
    void close();  // all have come
    void give(Thread& thread, uint32_t epoch) const;  // the thread knows what all knew and goes on in this epoch
    void clear() { *this = Gathering(); }

private:
    ClockRef together_, last_;
    Knowledge foreign_;
};

}  // namespace machine
