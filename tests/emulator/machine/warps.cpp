#include "warps.hpp"

#include "fibers.hpp"
#include "findings.hpp"

namespace machine {

namespace {

std::vector<uint32_t> lanes_of(uint32_t mask) {
    std::vector<uint32_t> lanes;
    for (uint32_t lane = 0; lane < WARP_LANES; ++lane)
        if (mask >> lane & 1) lanes.push_back(lane);
    return lanes;
}

std::string lanes_text(uint32_t mask) { return threads_text(lanes_of(mask)); }

std::string describe_meeting(const Thread& thread) {
    const Warp& warp = *thread.warp;
    for (const Meeting& meeting : warp.meetings)
        if (meeting.arrived & thread.lane_bit)
            return text("%s for lanes %s of warp %u", meeting.name,
                        lanes_text(meeting.mask & warp.existing & ~meeting.arrived).c_str(), thread.registers.warpid);
    return "a meeting";
}

bool all_have_come(const Meeting& meeting, const Warp& warp) {
    return (meeting.mask & warp.existing & ~warp.exited & ~meeting.arrived) == 0;
}

// All have come: says whether they go on, and makes them ready if so.
bool finish_meeting(Warp& warp, size_t index) {
    Meeting meeting = warp.meetings[index];
    warp.meetings.erase(warp.meetings.begin() + index);
    ++launch.counters.collectives;
    bool all_go_on = meeting.finish(meeting, warp);
    if (all_go_on)
        for (uint32_t lane : lanes_of(meeting.arrived)) make_ready(warp.threads[lane]);
    return all_go_on;
}

}  // namespace

void meet(const char* name, uint32_t mask, void* argument, Site site, bool (*finish)(Meeting&, Warp&)) {
    Thread& thread = *current;
    Warp& warp = *thread.warp;
    if (!(mask & thread.lane_bit))
        stop("divergence", site, "%s with mask 0x%08x, in which its own lane %u is not", name, mask,
             thread.registers.laneid);
    if (uint32_t gone = mask & warp.exited)
        report("divergence", site, "%s names lanes %s, which have exited", name, lanes_text(gone).c_str());
    size_t index = 0;
    while (index < warp.meetings.size() && warp.meetings[index].mask != mask) ++index;
    if (index == warp.meetings.size()) warp.meetings.push_back({mask, 0, site, name, finish, {}});
    Meeting& meeting = warp.meetings[index];
    if (meeting.site != site)
        stop("divergence", site, "lane %u executes %s here while lanes %s of its warp wait in %s at %s",
             thread.registers.laneid, name, lanes_text(meeting.arrived).c_str(), meeting.name,
             place(meeting.site).c_str());
    meeting.arguments[thread.registers.laneid] = argument;
    meeting.arrived |= thread.lane_bit;
    if (!all_have_come(meeting, warp)) wait(site, describe_meeting, 0);
    else if (!finish_meeting(warp, index)) wait(site, thread.waits_for, thread.wait_detail);
}

void lane_exits(Thread& thread) {
    Warp& warp = *thread.warp;
    warp.exited |= thread.lane_bit;
    for (size_t index = 0; index < warp.meetings.size();) {
        const Meeting& meeting = warp.meetings[index];
        if (meeting.mask & thread.lane_bit)
            report("divergence", meeting.site, "lane %u exits while lanes %s of its warp wait for it in %s",
                   thread.registers.laneid, lanes_text(meeting.arrived).c_str(), meeting.name);
        if (all_have_come(meeting, warp)) finish_meeting(warp, index);
        else ++index;
    }
}

}  // namespace machine
