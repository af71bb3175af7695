// atom, red, and loads and stores with an order. Before each the other threads may run, so that what happens between
// blocks depends on the schedule; a loop that only waits is put to sleep until its bytes change.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "fibers.hpp"
#include "findings.hpp"
#include "ordering.hpp"

namespace machine {

namespace {

constexpr uint32_t SPINS = 64;  // reads of the same bytes in a row, nothing changing, that make a waiting loop

// For a strong access that leaves `bytes` at `data` as they are: the last of many in a row sleeps until they change.
void sleep_if_spinning(const uint8_t* data, uint32_t bytes, Site site) {
    Spin& spin = current->spin;
    if (spin.site != site || spin.data != data || std::memcmp(spin.value, data, bytes)) {
        spin = {data, bytes, 0, {}, site};
        std::memcpy(spin.value, data, bytes);
    }
    if (++spin.times >= SPINS) spin_until_changed(site);
}

void let_others_run() {
    if (launch.blocks.size() > 1) yield();
}

float without_subnormal(float value) {
    return std::fpclassify(value) == FP_SUBNORMAL ? std::copysign(0.0f, value) : value;
}

template <class T>
T integer_result(Op op, T old, T value) {
    switch (op) {
        case Op::add: return T(uint64_t(old) + uint64_t(value));
        case Op::min: return std::min(old, value);
        case Op::max: return std::max(old, value);
        case Op::inc: return old >= value ? T(0) : T(old + 1);
        case Op::dec: return old == 0 || old > value ? value : T(old - 1);
        case Op::exch: return value;
        case Op::and_: return old & value;
        case Op::or_: return old | value;
        case Op::xor_: return old ^ value;
    }
    return old;
}

template <class T>
T result_of(Op op, T old, T value, bool, Site) {
    return integer_result(op, old, value);
}

template <class T>
T real_result(Op op, T old, T value, Site site) {
    if (op == Op::exch) return value;
    if (op != Op::add) stop("refused", site, "an atomic on floating-point numbers other than add and exch");
    return old + value;
}

double result_of(Op op, double old, double value, bool, Site site) { return real_result(op, old, value, site); }

// In global memory, atom.add.f32 takes and gives zeros for subnormal numbers; in shared memory it does not.
float result_of(Op op, float old, float value, bool in_global, Site site) {
    if (op != Op::add || !in_global) return real_result(op, old, value, site);
    return without_subnormal(without_subnormal(old) + without_subnormal(value));
}

// Stores `next` if it may and differs from what is there; a loop that changes nothing is put to sleep.
template <class T>
void put(const Place& place, T next, Site site) {
    if (place.array && !may_store(*place.array, place.offset, sizeof(T), site)) return;
    if (std::memcmp(place.data, &next, sizeof next)) std::memcpy(place.data, &next, sizeof next);
    else sleep_if_spinning(place.data, sizeof next, site);
}

}  // namespace

template <uint32_t BYTES>
void load_strong(Space space, void* to, uint64_t address, Order order, Scope scope, Site site) {
    Place place = place_of(space, address, BYTES, site, "a strong load");
    let_others_run();
    sleep_if_spinning(place.data, BYTES, site);
    note_strong(place, BYTES, Kind::load, order, scope, site);
    std::memcpy(to, place.data, BYTES);
}

template <uint32_t BYTES>
void store_strong(Space space, uint64_t address, const void* from, Order order, Scope scope, Site site) {
    Place place = place_of(space, address, BYTES, site, "a strong store");
    let_others_run();
    note_strong(place, BYTES, Kind::store, order, scope, site);
    if (!place.array || may_store(*place.array, place.offset, BYTES, site)) std::memcpy(place.data, from, BYTES);
}

template <class T>
T atomic(Op op, Space space, uint64_t address, T value, Order order, Scope scope, Site site) {
    Place place = place_of(space, address, sizeof(T), site, "an atomic");
    let_others_run();
    note_strong(place, sizeof(T), Kind::update, order, scope, site);
    T old;
    std::memcpy(&old, place.data, sizeof old);
    put(place, result_of(op, old, value, place.array != nullptr, site), site);
    return old;
}

template <class T>
T atomic_cas(Space space, uint64_t address, T expected, T desired, Order order, Scope scope, Site site) {
    Place place = place_of(space, address, sizeof(T), site, "an atomic");
    let_others_run();
    T old;
    std::memcpy(&old, place.data, sizeof old);
    note_strong(place, sizeof(T), old == expected ? Kind::update : Kind::load, order, scope, site);
    put(place, old == expected ? desired : old, site);
    return old;
}

#define INSTANTIATE(BYTES)                                                        \
    template void load_strong<BYTES>(Space, void*, uint64_t, Order, Scope, Site); \
    template void store_strong<BYTES>(Space, uint64_t, const void*, Order, Scope, Site);
INSTANTIATE(1)
INSTANTIATE(2)
INSTANTIATE(4)
INSTANTIATE(8)
INSTANTIATE(16)
#undef INSTANTIATE

template uint32_t atomic<uint32_t>(Op, Space, uint64_t, uint32_t, Order, Scope, Site);
template int32_t atomic<int32_t>(Op, Space, uint64_t, int32_t, Order, Scope, Site);
template uint64_t atomic<uint64_t>(Op, Space, uint64_t, uint64_t, Order, Scope, Site);
template int64_t atomic<int64_t>(Op, Space, uint64_t, int64_t, Order, Scope, Site);
template float atomic<float>(Op, Space, uint64_t, float, Order, Scope, Site);
template double atomic<double>(Op, Space, uint64_t, double, Order, Scope, Site);
template uint32_t atomic_cas<uint32_t>(Space, uint64_t, uint32_t, uint32_t, Order, Scope, Site);
template uint64_t atomic_cas<uint64_t>(Space, uint64_t, uint64_t, uint64_t, Order, Scope, Site);

}  // namespace machine
