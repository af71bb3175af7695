// Local memory, parameters and addresses: what the machine leaves to the translated code.
#pragma once
#include "integers.hpp"

// The local arrays of a function and, by `up`, of its callers: an access must lie within one of them.
struct Frame {
    const Frame* up;
    u64 start, bytes;
};

static inline bool within(u64 address, u64 bytes, u64 start, u64 size) {
    return address - start < size && bytes <= size - (address - start);
}

template <class T>
static inline T& local(const Frame* frame, u64 address, u32 alignment, machine::Site site) {
    if (address % alignment) machine::fault("a local access that is not aligned", site);
    for (; frame; frame = frame->up)
        if (within(address, alignment, frame->start, frame->bytes)) return *(T*)address;
    machine::fault("a local access outside the thread's arrays", site);
}

// A parameter of the kernel read through a register.
template <class T>
static inline const T& parameter(const void* params, u64 size, u64 address, u32 alignment, machine::Site site) {
    if (address % alignment || !within(address, alignment, (u64)params, size))
        machine::fault("a parameter read that is not aligned or lies outside the parameters", site);
    return *(const T*)address;
}

// The 32-bit shared address held in a 64-bit register; a generic address in its place would have high bits.
static inline u32 short_address(u64 address, machine::Site site) {
    if (address >> 32) machine::fault("a shared-memory access with an address of another space", site);
    return (u32)address;
}

// atom.add.noftz of f16x2 and bf16x2, which the machine does not have: each half on its own, by compare and swap.
static inline u32 atomic_add_halves(u32 (*add)(u32, u32), machine::Space space, u64 address, u32 value,
                                    machine::Order order, machine::Scope scope, machine::Site site) {
    u32 seen = machine::atomic<u32>(machine::Op::or_, space, address, 0, order, scope, site);
    for (;;) {
        u32 before = machine::atomic_cas<u32>(space, address, seen, add(seen, value), order, scope, site);
        if (before == seen) return before;
        seen = before;
    }
}
