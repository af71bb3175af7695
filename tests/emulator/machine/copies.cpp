// cp.async. A group's bytes land, all at once, in the wait that must cover them, until which the destination holds
// poison; or, where the configuration says so, when they are issued. To the checker they are in flight until the wait.
#include <cstring>

#include "access.hpp"
#include "findings.hpp"

namespace machine {

namespace {

void write(const Copy& copy) {
    uint8_t* to = current->block->shared + shared_offset(copy.to);
    std::memcpy(to, copy.from, copy.source_bytes);
    std::memset(to + copy.source_bytes, 0, copy.bytes - copy.source_bytes);
}

bool lands_at_once() {
    if (launch.config.landing != MACHINE_LANDS_RANDOMLY) return launch.config.landing == MACHINE_LANDS_AT_ONCE;
    uint64_t mixed = (launch.counters.copies + launch.config.seed + 1) * 0x9e3779b97f4a7c15ull;
    return mixed >> 63;
}

void land(const std::vector<Copy>& copies) {
    for (const Copy& copy : copies) {
        if (!copy.landed) write(copy);
        if (launch.checks) current->block->cells.copy_lands(*current, shared_offset(copy.to), copy.bytes, copy.site);
    }
}

}  // namespace

void cp_async(uint32_t to, uint64_t from, uint32_t bytes, uint32_t source_bytes, Site site) {
    if (source_bytes > bytes || (bytes != 4 && bytes != 8 && bytes != 16))
        stop("refused", site, "cp.async of %u bytes, %u of them read; it copies 4, 8 or 16 bytes", bytes, source_bytes);
    uint8_t* destination = shared_data(to, bytes, site, "the destination of cp.async");
    if (from & (bytes - 1))
        stop("misaligned", site, "cp.async of %u bytes from global address 0x%llx, which is no multiple of %u", bytes,
             (unsigned long long)from, bytes);
    if (source_bytes) {
        Array* array = find_array(from, source_bytes);
        if (!array) array = &array_of(from, bytes, site, "cp.async");  // says what is wrong
        uint64_t offset = offset_in(*array, from);
        if (launch.checks && array->flags & MACHINE_BETWEEN_BLOCKS)
            for (uint32_t i = 0; i < source_bytes; i += 4)
                cells_of(*array).read(*current, array->name.c_str(), offset + i, std::min(4u, source_bytes - i), site);
    }
    if (launch.checks) current->block->cells.copy_begins(*current, shared_offset(to), bytes, site, "cp.async");
    ++launch.counters.copies;
    Copy copy{to, reinterpret_cast<const uint8_t*>(from), bytes, source_bytes, site, lands_at_once()};
    if (copy.landed) write(copy);
    else std::memset(destination, POISON, bytes);
    current->open_copies.push_back(copy);
}

void cp_async_commit(Site) {
    current->copy_groups.push_back(std::move(current->open_copies));
    current->open_copies.clear();
}

void cp_async_wait(uint32_t groups, Site) {
    while (current->copy_groups.size() > groups) {
        land(current->copy_groups.front());
        current->copy_groups.pop_front();
    }
}

void cp_async_wait_all(Site site) {
    cp_async_commit(site);
    cp_async_wait(0, site);
}

}  // namespace machine
