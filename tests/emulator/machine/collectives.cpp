// shfl, vote, redux, match and bar.warp.sync. Only the last orders memory.
#include "clocks.hpp"
#include "fibers.hpp"
#include "findings.hpp"
#include "warps.hpp"

namespace machine {

namespace {

struct ShuffleArgument {
    Shuffle mode;
    uint32_t a, b, c, result;
    bool in_range;
};

// The lane read by `lane`, as the PTX manual computes it: clamp in bits 0-4 of c, segment mask in bits 8-12.
uint32_t source_lane(const ShuffleArgument& shuffle, uint32_t lane, bool* in_range) {
    uint32_t b = shuffle.b & 31, clamp = shuffle.c & 31, segment = shuffle.c >> 8 & 31;
    int most = (lane & segment) | (clamp & ~segment), least = lane & segment, source = 0;
    switch (shuffle.mode) {
        case Shuffle::up: source = int(lane) - int(b); break;
        case Shuffle::down: source = lane + b; break;
        case Shuffle::bfly: source = lane ^ b; break;
        case Shuffle::idx: source = least | (b & ~segment); break;
    }
    *in_range = shuffle.mode == Shuffle::up ? source >= most : source <= most;
    return *in_range ? source : lane;
}

bool finish_shuffle(Meeting& meeting, Warp&) {
    for_lanes<ShuffleArgument>(meeting, [&](uint32_t lane, ShuffleArgument& shuffle) {
        uint32_t source = source_lane(shuffle, lane, &shuffle.in_range);
        auto from = static_cast<ShuffleArgument*>(meeting.arguments[source]);
        if (!from) {
            report("divergence", meeting.site, "%s: lane %u reads lane %u, which takes no part", meeting.name, lane,
                   source);
            from = &shuffle;
        }
        shuffle.result = from->a;
    });
    return true;
}

struct VoteArgument {
    bool value;
    uint32_t ballot;
};

bool finish_vote(Meeting& meeting, Warp&) {
    uint32_t ballot = 0;
    for_lanes<VoteArgument>(meeting,
                            [&](uint32_t lane, VoteArgument& vote) { ballot |= uint32_t{vote.value} << lane; });
    for_lanes<VoteArgument>(meeting, [&](uint32_t, VoteArgument& vote) { vote.ballot = ballot; });
    return true;
}

uint32_t vote(const char* name, bool value, uint32_t mask, Site site) {
    VoteArgument argument{value, 0};
    meet(name, mask, &argument, site, finish_vote);
    return argument.ballot;
}

struct ReduxArgument {
    Op op;
    bool is_signed;
    uint32_t value, result;
};

uint32_t combine(const ReduxArgument& redux, uint32_t one, uint32_t other) {
    bool less = redux.is_signed ? int32_t(one) < int32_t(other) : one < other;
    switch (redux.op) {
        case Op::add: return one + other;
        case Op::and_: return one & other;
        case Op::or_: return one | other;
        case Op::xor_: return one ^ other;
        case Op::min: return less ? one : other;
        case Op::max: return less ? other : one;
        default: stop("refused", nullptr, "redux.sync with an operation it does not have");
    }
}

bool finish_redux(Meeting& meeting, Warp&) {
    uint32_t result = 0;
    bool first = true;
    for_lanes<ReduxArgument>(meeting, [&](uint32_t, ReduxArgument& redux) {
        result = first ? redux.value : combine(redux, result, redux.value);
        first = false;
    });
    for_lanes<ReduxArgument>(meeting, [&](uint32_t, ReduxArgument& redux) { redux.result = result; });
    return true;
}

struct MatchArgument {
    uint64_t value;
    uint32_t equal;
};

bool finish_match(Meeting& meeting, Warp&) {
    for_lanes<MatchArgument>(meeting, [&](uint32_t, MatchArgument& match) {
        for_lanes<MatchArgument>(meeting, [&](uint32_t lane, MatchArgument& other) {
            match.equal |= uint32_t{other.value == match.value} << lane;
        });
    });
    return true;
}

bool finish_syncwarp(Meeting& meeting, Warp& warp) {
    if (!launch.checks) return true;
    Gathering gathering;
    for (uint32_t lane = 0; lane < WARP_LANES; ++lane)
        if (meeting.arrived >> lane & 1) gathering.add(warp.threads[lane]);
    gathering.close();
    uint32_t epoch = ++warp.block->epochs;
    for (uint32_t lane = 0; lane < WARP_LANES; ++lane)
        if (meeting.arrived >> lane & 1) gathering.give(warp.threads[lane], epoch);
    return true;
}

}  // namespace

uint32_t shfl(Shuffle mode, uint32_t a, uint32_t b, uint32_t c, uint32_t mask, bool* p, Site site) {
    static const char* const NAMES[] = {"shfl.up", "shfl.down", "shfl.bfly", "shfl.idx"};
    ShuffleArgument argument{mode, a, b, c, 0, false};
    meet(NAMES[int(mode)], mask, &argument, site, finish_shuffle);
    if (p) *p = argument.in_range;
    return argument.result;
}

bool vote_all(bool value, uint32_t mask, Site site) { return vote("vote.all", !value, mask, site) == 0; }
bool vote_any(bool value, uint32_t mask, Site site) { return vote("vote.any", value, mask, site) != 0; }

bool vote_uni(bool value, uint32_t mask, Site site) {
    MatchArgument argument{value, 0};
    meet("vote.uni", mask, &argument, site, finish_match);
    return argument.equal == (mask & current->warp->existing);
}

uint32_t ballot(bool value, uint32_t mask, Site site) { return vote("vote.ballot", value, mask, site); }

uint32_t redux(Op op, uint32_t value, uint32_t mask, Site site) {
    ReduxArgument argument{op, false, value, 0};
    meet("redux", mask, &argument, site, finish_redux);
    return argument.result;
}

int32_t redux_signed(Op op, int32_t value, uint32_t mask, Site site) {
    ReduxArgument argument{op, true, uint32_t(value), 0};
    meet("redux", mask, &argument, site, finish_redux);
    return int32_t(argument.result);
}

uint32_t match_any(uint64_t value, uint32_t mask, Site site) {
    MatchArgument argument{value, 0};
    meet("match.any", mask, &argument, site, finish_match);
    return argument.equal;
}

uint32_t match_all(uint64_t value, uint32_t mask, bool* p, Site site) {
    MatchArgument argument{value, 0};
    meet("match.all", mask, &argument, site, finish_match);
    bool all = argument.equal == (mask & current->warp->existing);
    if (p) *p = all;
    return all ? mask : 0;
}

void syncwarp(uint32_t mask, Site site) { meet("bar.warp.sync", mask, nullptr, site, finish_syncwarp); }

uint32_t activemask() { return current->warp->existing & ~current->warp->exited; }

}  // namespace machine
