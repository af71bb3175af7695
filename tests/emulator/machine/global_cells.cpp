#include "global_cells.hpp"

#include "findings.hpp"
#include "state.hpp"

namespace machine {

void GlobalCells::start(uint64_t bytes) {
    shift_ = 2;
    uses_.clear();
    uint64_t count = (bytes + 3) >> shift_;
    if (cells_.size() == count) cells_.clear();
    else cells_ = LazyArray<Cell>(count);
}

// A narrower access makes every cell several that are alike.
void GlobalCells::fit(uint32_t bytes) {
    while (bytes >> shift_ == 0) {
        LazyArray<Cell> cells(cells_.size() * 2);
        for (size_t i = 0; i < cells.size(); ++i) {
            const Cell& cell = cells_[i / 2];
            if (!cell.write_epoch && !cell.uses) continue;
            cells[i] = cell;
            if (!cell.uses || i % 2 == 0) continue;
            uses_.push_back(Uses(uses_[cell.uses - 1]));
            cells[i].uses = uses_.size();
        }
        cells_ = std::move(cells);
        --shift_;
    }
}

GlobalCells::Uses& GlobalCells::uses(Cell& cell) {
    if (!cell.uses) {
        uses_.emplace_back();
        cell.uses = uses_.size();
    }
    return uses_[cell.uses - 1];
}

void GlobalCells::read(const Thread& thread, const char* name, uint64_t offset, uint32_t bytes, Site site) {
    fit(bytes);
    const Access access{thread, name, "a load", offset, bytes, site};
    for (uint64_t index = offset >> shift_; index < (offset + bytes) >> shift_; ++index) {
        if (!after_write(access, index) || !after_strong(access, index, true)) return;
        add_reader(access, cells_[index]);
    }
}

void GlobalCells::write(const Thread& thread, const char* name, uint64_t offset, uint32_t bytes, Site site) {
    fit(bytes);
    const Access access{thread, name, "a store", offset, bytes, site};
    for (uint64_t index = offset >> shift_; index < (offset + bytes) >> shift_; ++index) {
        Cell& cell = cells_[index];
        if (!after_write(access, index) || !after_strong(access, index, false) || !after_readers(access, index)) return;
        if (cell.uses) uses_[cell.uses - 1] = Uses();
        cell.write_epoch = thread.epoch;
        cell.writer_block = thread.block->number;
        cell.writer = thread.index;
        cell.written_at = site;
    }
}

void GlobalCells::strong(const Thread& thread, const char* name, uint64_t offset, uint32_t bytes, bool writes,
                         Scope scope, Site site) {
    fit(bytes);
    const Access access{thread, name, writes ? "an atomic or strong store" : "a strong load", offset, bytes, site};
    const StrongAccess strong{thread.block->number, thread.index, thread.epoch, writes, scope, site};
    for (uint64_t index = offset >> shift_; index < (offset + bytes) >> shift_; ++index) {
        if (!after_write(access, index) || (writes && !after_readers(access, index))) return;
        StrongSet& accesses = uses(cells_[index]).accesses;
        const StrongAccess* other = accesses.out_of_scope(thread, strong);
        if (other && !race(access, index, other->block, other->thread,
                           "accessed it atomically, one of the two with cta scope,", other->site))
            return;
        accesses.add(strong);
    }
}

bool GlobalCells::after_write(const Access& access, uint64_t index) const {
    const Cell& cell = cells_[index];
    if (!cell.write_epoch || knows(access.thread, cell.writer_block, cell.writer, cell.write_epoch)) return true;
    return race(access, index, cell.writer_block, cell.writer, "stored it", cell.written_at);
}

bool GlobalCells::after_strong(const Access& access, uint64_t index, bool writes_only) const {
    const Cell& cell = cells_[index];
    if (!cell.uses) return true;
    const StrongAccess* other = uses_[cell.uses - 1].accesses.unordered(access.thread, writes_only);
    return !other || race(access, index, other->block, other->thread, "accessed it atomically", other->site);
}

bool GlobalCells::after_readers(const Access& access, uint64_t index) const {
    const Cell& cell = cells_[index];
    if (!cell.uses) return true;
    for (const Readers& readers : uses_[cell.uses - 1].readers) {
        for (uint32_t lanes = readers.lanes; lanes; lanes &= lanes - 1) {
            uint32_t reader = readers.warp * WARP_LANES + __builtin_ctz(lanes);
            if (!knows(access.thread, readers.block, reader, readers.epoch))
                return race(access, index, readers.block, reader, "read it", readers.site);
        }
    }
    return true;
}

void GlobalCells::add_reader(const Access& access, Cell& cell) {
    const Thread& thread = access.thread;
    std::vector<Readers>& all = uses(cell).readers;
    for (Readers& readers : all) {
        if (readers.block != thread.block->number || readers.warp != thread.registers.warpid) continue;
        if (readers.epoch == thread.epoch) {
            readers.lanes |= thread.lane_bit;
            return;
        }
        if (readers.lanes == thread.lane_bit) {  // a thread's later read stands for its earlier one
            readers.epoch = thread.epoch;
            readers.site = access.site;
            return;
        }
    }
    all.push_back({thread.block->number, thread.registers.warpid, thread.epoch, thread.lane_bit, access.site});
}

bool GlobalCells::race(const Access& access, uint64_t index, uint32_t block, uint32_t thread, const char* did,
                       Site site) const {
    report("race", access.site, "%s of %u bytes at '%s' + %llu: nothing orders it after %s, which %s (byte %llu) at %s",
           access.what, access.bytes, access.name, (unsigned long long)access.offset,
           thread_name(access.thread, block, thread).c_str(), did, (unsigned long long)(index << shift_),
           place(site).c_str());
    return false;
}

}  // namespace machine
