// Strong accesses of one cell: atomics, and loads and stores with an order. They do not race with each other, so all
// since the last plain store are kept; a plain access must be ordered after each of them.
#pragma once
#include <vector>

#include "machine.hpp"

namespace machine {

struct Thread;

struct StrongAccess {
    uint32_t block, thread, epoch;
    bool writes;
    Scope scope;
    Site site;
};

class StrongSet {
public:
    void add(const StrongAccess& access);
    // The first access not ordered before `thread`: any, or with writes_only one that writes. Null if all are.
    const StrongAccess* unordered(const Thread& thread, bool writes_only) const;
    // The first access of another block that this one races with because one of the two has cta scope. Null if none.
    const StrongAccess* out_of_scope(const Thread& thread, const StrongAccess& access) const;

private:
    std::vector<StrongAccess> accesses_;  // the last of each thread, and its last write
};

}  // namespace machine
