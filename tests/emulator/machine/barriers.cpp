// bar.sync, bar.arrive, bar.red. The lanes of a warp first meet, as .aligned asks; then the warp counts as one
// arrival.
#include "fibers.hpp"
#include "findings.hpp"
#include "warps.hpp"

namespace machine {

namespace {

struct BarrierArgument {
    uint32_t id, expected;  // warps
    bool waits, value;
    BarrierVotes votes;  // of the whole phase
};

std::string describe_barrier(const Thread& thread) {
    const Barrier& barrier = thread.block->barriers[thread.wait_detail];
    return text("barrier %u: %u of %u warps have arrived", uint32_t(thread.wait_detail), barrier.arrived,
                barrier.expected);
}

// The lanes of one warp count in; those that wait are noted, and told the votes at the end of the phase.
void count_in(Meeting& meeting, Warp& warp, Barrier& barrier) {
    for_lanes<BarrierArgument>(meeting, [&](uint32_t lane, BarrierArgument& argument) {
        Thread& thread = warp.threads[lane];
        ++barrier.votes.threads;
        barrier.votes.trues += argument.value;
        if (launch.checks) {
            barrier.gathering.add(thread);
            thread.epoch = warp.block->epochs + 1;
        }
        if (!argument.waits) return;
        barrier.waiting.push_back({&thread, &argument.votes});
        thread.waits_at = meeting.site;
        thread.waits_for = describe_barrier;
        thread.wait_detail = argument.id;
    });
    ++warp.block->epochs;
    ++barrier.arrived;
}

void end_phase(Block& block, Barrier& barrier) {
    if (launch.checks) barrier.gathering.close();
    uint32_t epoch = ++block.epochs;
    for (auto [thread, votes] : barrier.waiting) {
        if (launch.checks) barrier.gathering.give(*thread, epoch);
        *votes = barrier.votes;
        make_ready(*thread);
    }
    barrier = Barrier();
    ++launch.counters.barriers;
}

bool finish_barrier(Meeting& meeting, Warp& warp) {
    const BarrierArgument* first = nullptr;
    for_lanes<BarrierArgument>(meeting, [&](uint32_t lane, BarrierArgument& argument) {
        if (!first) first = &argument;
        if (argument.id != first->id || argument.expected != first->expected)
            stop("barrier", meeting.site,
                 "lane %u names barrier %u of %u threads, another lane of its warp barrier %u of %u threads", lane,
                 argument.id, argument.expected * WARP_LANES, first->id, first->expected * WARP_LANES);
    });
    Barrier& barrier = warp.block->barriers[first->id];
    if (barrier.arrived && barrier.expected != first->expected)
        stop("barrier", meeting.site, "barrier %u is used here for %u threads, by others of the same phase for %u",
             first->id, first->expected * WARP_LANES, barrier.expected * WARP_LANES);
    barrier.expected = first->expected;
    count_in(meeting, warp, barrier);
    if (barrier.arrived < barrier.expected) return !first->waits;
    end_phase(*warp.block, barrier);
    return true;
}

BarrierVotes come_to_barrier(const char* name, uint32_t id, uint32_t count, bool waits, bool value, Site site) {
    if (id >= BARRIERS) stop("barrier", site, "%s of barrier %u; there are barriers 0 to 15", name, id);
    uint32_t warps = count ? count / WARP_LANES : launch.warps;
    if (count % WARP_LANES || warps > launch.warps)
        stop("barrier", site, "%s for %u threads; the count must be a multiple of 32 and at most the block's %u", name,
             count, launch.threads);
    BarrierArgument argument{id, warps, waits, value, {0, 0}};
    meet(name, current->warp->existing, &argument, site, finish_barrier);
    return argument.votes;
}

}  // namespace

void barrier_sync(uint32_t id, uint32_t count, Site site) { come_to_barrier("bar.sync", id, count, true, false, site); }

void barrier_arrive(uint32_t id, uint32_t count, Site site) {
    come_to_barrier("bar.arrive", id, count, false, false, site);
}

uint32_t barrier_red(Reduce op, uint32_t id, uint32_t count, bool value, Site site) {
    BarrierVotes votes = come_to_barrier("bar.red", id, count, true, value, site);
    if (op == Reduce::popc) return votes.trues;
    return op == Reduce::and_ ? votes.trues == votes.threads : votes.trues > 0;
}

}  // namespace machine
