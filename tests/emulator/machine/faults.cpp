// Faults of the translated code itself: a stack overflow or a wild address that no check has seen ends the launch
// with a finding, not the process.
#include <csignal>
#include <cstdlib>

#include "fibers.hpp"
#include "findings.hpp"

namespace machine {

namespace {

constexpr size_t SIGNAL_STACK_BYTES = 65536;
struct sigaction earlier_segv, earlier_bus;
stack_t earlier_stack;

void on_fault(int signal_number, siginfo_t* info, void*) {
    if (!current) {  // not of a kernel: as if this handler were not there
        sigaction(signal_number, signal_number == SIGSEGV ? &earlier_segv : &earlier_bus, nullptr);
        return;
    }
    auto address = reinterpret_cast<uint64_t>(info->si_addr);
    if (on_own_stack(address))
        stop("stack-overflow", nullptr,
             "the thread's registers and local arrays need more than the stack of its fiber");
    stop("fault", nullptr, "the translated code touched host address 0x%llx unchecked", (unsigned long long)address);
}

}  // namespace

FaultGuard::FaultGuard() {
    static uint8_t memory[SIGNAL_STACK_BYTES];
    stack_t stack{};
    stack.ss_sp = memory;
    stack.ss_size = sizeof memory;
    sigaltstack(&stack, &earlier_stack);
    struct sigaction action{};
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    sigaction(SIGSEGV, &action, &earlier_segv);
    sigaction(SIGBUS, &action, &earlier_bus);
}

FaultGuard::~FaultGuard() {
    sigaction(SIGSEGV, &earlier_segv, nullptr);
    sigaction(SIGBUS, &earlier_bus, nullptr);
    sigaltstack(&earlier_stack, nullptr);
}

}  // namespace machine
