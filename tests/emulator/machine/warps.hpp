// Meetings of the lanes of a warp: the frame of every warp collective.
#pragma once
#include "state.hpp"

namespace machine {

// The running lane comes to a collective of `mask` at `site`. The last lane to come calls finish(), which may use
// what each lane brought and says whether all go on.
void meet(const char* name, uint32_t mask, void* argument, Site site, bool (*finish)(Meeting& meeting, Warp& warp));
void lane_exits(Thread& thread);  // those that wait for it hear of it

// Calls visit(lane, argument) for the lanes that came.
template <class Argument, class Visit>
void for_lanes(Meeting& meeting, Visit visit) {
    for (uint32_t lane = 0; lane < WARP_LANES; ++lane)
        if (meeting.arrived >> lane & 1) visit(lane, *static_cast<Argument*>(meeting.arguments[lane]));
}

}  // namespace machine
