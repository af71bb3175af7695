// One fiber per resident thread and the deterministic scheduler that says who runs next.
#pragma once
#include "state.hpp"

namespace machine {

bool prepare_fibers(uint32_t count);     // stacks for so many; false where there is no memory
void start_fiber(Thread& thread);        // at the kernel's first instruction, ready to run
bool run_fibers();  // from the host's side: until a block has ended (true) or the launch stopped
Block* ended_block();  // the one for which run_fibers returned

void make_ready(Thread& thread);
// The running thread stops until made ready; `describe` tells a deadlock's report what it waits for.
void wait(Site site, std::string (*describe)(const Thread&), uint64_t detail);
void yield();  // lets the others go first
void spin_until_changed(Site site);  // sleeps until no other thread can run and the bytes of its `spin` have changed
[[noreturn]] void leave_launch();  // for good: the other fibers are abandoned
uint64_t random_number();  // of the launch's seed
bool on_own_stack(uint64_t address);

// Faults of the translated code itself (a stack overflow, say) become findings while this exists.
class FaultGuard {
public:
    FaultGuard();
    ~FaultGuard();
};

}  // namespace machine
