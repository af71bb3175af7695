#include "ordering.hpp"

namespace machine {

namespace {

bool acquires(Order order) { return order == Order::acquire || order == Order::acq_rel || order == Order::sc; }
bool releases(Order order) { return order == Order::release || order == Order::acq_rel || order == Order::sc; }

// A read takes up what was released at its address, at once or, if relaxed, in the next fence.
void take_up(Thread& thread, const SyncPoint& point, Order order, Scope scope) {
    const Knowledge nothing;
    const Knowledge& cta = point.cta_block == thread.block->number ? point.cta : nothing;
    const Knowledge& gpu = scope == Scope::cta ? nothing : point.gpu;
    if (acquires(order)) {
        acquire(thread, cta);
        acquire(thread, gpu);
    } else {
        join(thread.fences.seen_cta, cta);
        join(thread.fences.seen_gpu, gpu);
    }
}

// A write hands on all that its thread knows or, if relaxed, what it knew at its last fence. An update adds to what
// others have released here; a store replaces it, but for what its own thread has released here before.
void hand_on(Thread& thread, SyncPoints& points, const uint8_t* data, Kind kind, Order order, Scope scope) {
    Knowledge cta = thread.fences.released_cta, gpu = thread.fences.released_gpu;
    if (releases(order)) cta = gpu = release_of(thread);
    if (scope == Scope::cta) gpu.clear();
    if (cta.empty() && gpu.empty() && !points.count(data)) return;
    SyncPoint& point = points[data];
    const bool adds = kind == Kind::update || point.releaser == thread.identity();
    if (!adds) point.gpu.clear();
    if (!adds || point.cta_block != thread.block->number) point.cta.clear();
    join(point.gpu, gpu);
    join(point.cta, cta);
    point.cta_block = thread.block->number;
    if (releases(order)) point.releaser = thread.identity();
}

}  // namespace

void note_strong(const Place& place, uint32_t bytes, Kind kind, Order order, Scope scope, Site site) {
    ++launch.counters.atomics;
    if (!launch.checks) return;
    Thread& thread = *current;
    const bool reads = kind != Kind::store, writes = kind != Kind::load;
    if (!place.array) thread.block->cells.strong(thread, uint32_t(place.offset), bytes, reads, writes, scope, site);
    else if (place.array->flags & MACHINE_BETWEEN_BLOCKS)
        cells_of(*place.array).strong(thread, place.array->name.c_str(), place.offset, bytes, writes, scope, site);
    SyncPoints& points = place.array ? launch.sync_points : thread.block->sync_points;
    auto found = points.find(place.data);
    if (reads && found != points.end()) take_up(thread, found->second, order, scope);
    if (writes) hand_on(thread, points, place.data, kind, order, scope);
}

void fence(Order, Scope scope, Site) {
    if (!launch.checks) return;
    Thread& thread = *current;
    FenceState& fences = thread.fences;
    acquire(thread, fences.seen_cta);
    fences.seen_cta.clear();
    if (scope != Scope::cta) {
        acquire(thread, fences.seen_gpu);
        fences.seen_gpu.clear();
    }
    fences.released_cta = release_of(thread);
    if (scope != Scope::cta) fences.released_gpu = fences.released_cta;
}

}  // namespace machine
