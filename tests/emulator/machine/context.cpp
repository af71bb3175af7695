#include "context.hpp"

#if defined(__x86_64__)

extern "C" void machine_switch_context(void** from, void* to) __attribute__((visibility("hidden")));
asm(R"(
    .text
    .hidden machine_switch_context
    .globl machine_switch_context
    .type machine_switch_context, @function
machine_switch_context:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
    .size machine_switch_context, . - machine_switch_context
)");

namespace machine {

void* new_context(uint8_t* stack, size_t bytes, void (*entry)()) {
    constexpr int SAVED_REGISTERS = 6;
    auto top = reinterpret_cast<void**>(reinterpret_cast<uintptr_t>(stack + bytes) & ~uintptr_t{15});
    *--top = nullptr;  // entry's return address: the stack is aligned as after a call
    *--top = reinterpret_cast<void*>(entry);
    for (int i = 0; i < SAVED_REGISTERS; ++i) *--top = nullptr;
    return top;
}

void switch_context(void** from, void* to) { machine_switch_context(from, to); }

}  // namespace machine

#else

#include <ucontext.h>

#include <new>

namespace machine {

// The context of a fiber that has not started lies at the low end of its stack, that of one left on its own stack.
void* new_context(uint8_t* stack, size_t bytes, void (*entry)()) {
    constexpr size_t GUARD_BYTES = 65536;
    auto context = new (stack + GUARD_BYTES) ucontext_t;
    getcontext(context);
    context->uc_stack.ss_sp = context + 1;
    context->uc_stack.ss_size = bytes - GUARD_BYTES - sizeof(ucontext_t);
    context->uc_link = nullptr;
    makecontext(context, entry, 0);
    return context;
}

void switch_context(void** from, void* to) {
    ucontext_t here;
    *from = &here;
    swapcontext(&here, static_cast<ucontext_t*>(to));
}

}  // namespace machine

#endif
