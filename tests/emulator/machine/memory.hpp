// Global memory: the table of arrays, each between guard pages, and the checks that hang on an array.
#pragma once
#include <memory>
#include <string>

#include "global_cells.hpp"
#include "state.hpp"

namespace machine {

struct Array {
    uint8_t* data = nullptr;
    uint64_t bytes = 0;
    std::string name;
    uint32_t flags = 0;               // MACHINE_...
    uint64_t stored_in = 0;           // number of the last launch that stored into it,
    uint64_t read_nc_in = 0;          // and of the last that read it through ld.global.nc
    uint64_t checked_in = 0;          // and of the last for which what follows was cleared
    LazyArray<uint16_t> written;      // of a write-once array, one bit per byte: stored in this launch
    std::unique_ptr<GlobalCells> cells;
};

// The array in which [address, address + bytes) lies; null if there is none.
Array* find_array(uint64_t address, uint32_t bytes);

// The array of an access that has been checked for bounds and alignment; what it may not do ends the launch.
Array& array_of(uint64_t address, uint32_t bytes, Site site, const char* what);

inline uint64_t offset_in(const Array& array, uint64_t address) {
    return address - reinterpret_cast<uint64_t>(array.data);
}

// For arrays with flags: false if the store must not be made.
bool check_store(Array& array, uint64_t offset, uint32_t bytes, Site site);
GlobalCells& cells_of(Array& array);

}  // namespace machine
