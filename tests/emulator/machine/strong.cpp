#include "strong.hpp"

#include "state.hpp"

namespace machine {

void StrongSet::add(const StrongAccess& access) {
    for (StrongAccess& known : accesses_) {
        if (known.block == access.block && known.thread == access.thread && known.writes == access.writes) {
            known = access;
            return;
        }
    }
    accesses_.push_back(access);
}

const StrongAccess* StrongSet::unordered(const Thread& thread, bool writes_only) const {
    for (const StrongAccess& access : accesses_)
        if ((access.writes || !writes_only) && !knows(thread, access.block, access.thread, access.epoch))
            return &access;
    return nullptr;
}

const StrongAccess* StrongSet::out_of_scope(const Thread& thread, const StrongAccess& access) const {
    for (const StrongAccess& known : accesses_) {
        bool one_writes = known.writes || access.writes,
             one_is_cta = known.scope == Scope::cta || access.scope == Scope::cta;
        if (known.block != access.block && one_writes && one_is_cta &&
            !knows(thread, known.block, known.thread, known.epoch))
            return &known;
    }
    return nullptr;
}

}  // namespace machine
