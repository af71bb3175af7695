// The switch from one stack to another: callee-saved registers only, 3 ns on x86-64, ucontext elsewhere.
#pragma once
#include <cstddef>
#include <cstdint>

namespace machine {

// A context that starts `entry`, which never returns, at the top of a stack.
void* new_context(uint8_t* stack, size_t bytes, void (*entry)());
// Leaves the running context in *from and goes on where `to` was left.
void switch_context(void** from, void* to);

}  // namespace machine
