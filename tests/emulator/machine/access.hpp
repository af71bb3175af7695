// Where an access of any space goes: the bytes behind the address, once bounds and alignment hold.
#pragma once
#include "memory.hpp"

namespace machine {

// The bytes of a shared access; one outside the block's shared memory ends the launch.
uint8_t* shared_data(uint32_t address, uint32_t bytes, Site site, const char* what);
inline uint32_t shared_offset(uint32_t address) { return address - launch.shared_base; }

// What an access of any space refers to: an array, or the block's shared memory (array is null).
struct Place {
    uint8_t* data;
    Array* array;
    uint64_t offset;  // in the array or in shared memory
};
Place place_of(Space space, uint64_t address, uint32_t bytes, Site site, const char* what);

// Whether the store may be made, with all that an array's flags ask of plain and strong stores alike.
bool may_store(Array& array, uint64_t offset, uint32_t bytes, Site site);
// A load through the non-coherent cache, which does not see what this launch stores.
void note_nc_load(Array& array, uint64_t offset, uint32_t bytes, Site site);

}  // namespace machine
