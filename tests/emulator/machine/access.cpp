// Plain loads and stores.
#include "access.hpp"

#include <cstring>

#include "fibers.hpp"
#include "findings.hpp"

namespace machine {

namespace {

[[noreturn]] void stop_shared(uint32_t address, uint32_t bytes, Site site, const char* what) {
    int64_t offset = int64_t{address} - launch.shared_base;
    if (offset < 0 || offset + bytes > launch.shared_bytes)
        stop("out-of-bounds", site,
             "%s of %u bytes at byte %lld of the block's %u bytes of shared memory (address 0x%x)", what, bytes,
             (long long)offset, launch.shared_bytes, address);
    stop("misaligned", site, "%s of %u bytes at shared address 0x%x (shared memory + %lld), which is no multiple of %u",
         what, bytes, address, (long long)offset, bytes);
}

bool is_checked(const Array& array) { return launch.checks && array.flags & MACHINE_BETWEEN_BLOCKS; }

Array& load_array(uint64_t address, uint32_t bytes, Site site) {
    Array& array = array_of(address, bytes, site, "a load");
    if (is_checked(array)) cells_of(array).read(*current, array.name.c_str(), offset_in(array, address), bytes, site);
    ++launch.counters.global_loads;
    return array;
}

}  // namespace

uint8_t* shared_data(uint32_t address, uint32_t bytes, Site site, const char* what) {
    uint32_t offset = shared_offset(address);
    if (uint64_t{offset} + bytes > launch.shared_bytes || address & (bytes - 1))
        stop_shared(address, bytes, site, what);
    return current->block->shared + offset;
}

bool may_store(Array& array, uint64_t offset, uint32_t bytes, Site site) {
    if (array.flags && !check_store(array, offset, bytes, site)) return false;
    if (array.read_nc_in == launch.number)
        report("non-coherent", site,
               "a store of %u bytes at '%s' + %llu, an array that this launch reads through ld.global.nc", bytes,
               array.name.c_str(), (unsigned long long)offset);
    array.stored_in = launch.number;
    return true;
}

void note_nc_load(Array& array, uint64_t offset, uint32_t bytes, Site site) {
    array.read_nc_in = launch.number;
    if (array.stored_in == launch.number)
        report("non-coherent", site, "ld.global.nc of %u bytes at '%s' + %llu, an array into which this launch stores",
               bytes, array.name.c_str(), (unsigned long long)offset);
}

Place place_of(Space space, uint64_t address, uint32_t bytes, Site site, const char* what) {
    if (space == Space::generic) space = is_shared(address) ? Space::shared : Space::global;
    else if (space == Space::shared) address = shared_to_generic(uint32_t(address));
    if (space == Space::global) {
        Array& array = array_of(address, bytes, site, what);
        uint64_t offset = offset_in(array, address);
        return {array.data + offset, &array, offset};
    }
    uint32_t shared = uint32_t(generic_to_shared(address));
    return {shared_data(shared, bytes, site, what), nullptr, shared_offset(shared)};
}

template <uint32_t BYTES>
void load_global(void* to, uint64_t address, Site site) {
    load_array(address, BYTES, site);
    std::memcpy(to, reinterpret_cast<const void*>(address), BYTES);
}

template <uint32_t BYTES>
void load_global_nc(void* to, uint64_t address, Site site) {
    Array& array = load_array(address, BYTES, site);
    note_nc_load(array, offset_in(array, address), BYTES, site);
    std::memcpy(to, reinterpret_cast<const void*>(address), BYTES);
}

template <uint32_t BYTES>
void store_global(uint64_t address, const void* from, Site site) {
    Array& array = array_of(address, BYTES, site, "a store");
    uint64_t offset = offset_in(array, address);
    ++launch.counters.global_stores;
    if (!may_store(array, offset, BYTES, site)) return;
    if (is_checked(array)) cells_of(array).write(*current, array.name.c_str(), offset, BYTES, site);
    std::memcpy(reinterpret_cast<void*>(address), from, BYTES);
}

template <uint32_t BYTES>
void load_shared(void* to, uint32_t address, Site site) {
    const uint8_t* from = shared_data(address, BYTES, site, "a load");
    ++launch.counters.shared_loads;
    if (launch.checks) current->block->cells.read(*current, shared_offset(address), BYTES, site, "a load");
    std::memcpy(to, from, BYTES);
}

template <uint32_t BYTES>
void store_shared(uint32_t address, const void* from, Site site) {
    uint8_t* to = shared_data(address, BYTES, site, "a store");
    ++launch.counters.shared_stores;
    if (launch.checks) current->block->cells.write(*current, shared_offset(address), BYTES, site, "a store");
    std::memcpy(to, from, BYTES);
}

template <uint32_t BYTES>
void load_generic(void* to, uint64_t address, Site site) {
    if (is_shared(address)) load_shared<BYTES>(to, uint32_t(generic_to_shared(address)), site);
    else if (is_local(address)) std::memcpy(to, reinterpret_cast<const void*>(address), BYTES);
    else load_global<BYTES>(to, address, site);
}

template <uint32_t BYTES>
void store_generic(uint64_t address, const void* from, Site site) {
    if (is_shared(address)) store_shared<BYTES>(uint32_t(generic_to_shared(address)), from, site);
    else if (is_local(address)) std::memcpy(reinterpret_cast<void*>(address), from, BYTES);
    else store_global<BYTES>(address, from, site);
}

#define INSTANTIATE(BYTES)                                          \
    template void load_global<BYTES>(void*, uint64_t, Site);        \
    template void load_global_nc<BYTES>(void*, uint64_t, Site);     \
    template void store_global<BYTES>(uint64_t, const void*, Site); \
    template void load_shared<BYTES>(void*, uint32_t, Site);        \
    template void store_shared<BYTES>(uint32_t, const void*, Site); \
    template void load_generic<BYTES>(void*, uint64_t, Site);       \
    template void store_generic<BYTES>(uint64_t, const void*, Site);
INSTANTIATE(1)
INSTANTIATE(2)
INSTANTIATE(4)
INSTANTIATE(8)
INSTANTIATE(16)
#undef INSTANTIATE

uint32_t shared_base() { return launch.shared_base; }
uint32_t shared_bytes() { return launch.shared_bytes; }
bool is_shared(uint64_t generic) { return generic - SHARED_WINDOW < 1ull << 32; }
bool is_local(uint64_t generic) { return on_own_stack(generic); }
bool is_global(uint64_t generic) { return !is_shared(generic) && !is_local(generic); }

}  // namespace machine
