// Everything a translated kernel includes.
#pragma once
#include "halves.hpp"
#include "memory.hpp"

#define EXPORTED __attribute__((visibility("default")))

// The lane that elect.sync names: the lowest of those present.
static inline bool elected(u32 mask, u32* leader, machine::Site site) {
    *leader = (u32)__builtin_ctz(machine::ballot(true, mask, site));
    return *leader == machine::registers->laneid;
}
