// Release and acquire: what strong accesses and fences let one thread know of another, as the PTX memory model has
// it.
#pragma once
#include "access.hpp"

namespace machine {

enum class Kind { load, store, update };  // update: reads and writes in one

// A strong access of these bytes is checked against plain ones and then hands on and takes up knowledge.
void note_strong(const Place& place, uint32_t bytes, Kind kind, Order order, Scope scope, Site site);

}  // namespace machine
