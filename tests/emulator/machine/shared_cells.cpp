#include "shared_cells.hpp"

#include <cstring>

#include "findings.hpp"
#include "state.hpp"

namespace machine {

void SharedCells::start(uint32_t bytes, uint32_t warps, bool first_of_launch) {
    if (first_of_launch) shift_ = 2;
    stride_ = sizeof(Cell) + warps * sizeof(Readers);
    data_.assign(size_t{(bytes + (1u << shift_) - 1) >> shift_} * stride_, 0);
    more_readers_.clear();
    strong_.clear();
}

// Every cell becomes several that are alike.
void SharedCells::narrow(uint32_t shift) {
    uint32_t pieces = 1u << (shift_ - shift), cells = data_.size() / stride_;
    std::vector<uint8_t> data(data_.size() * pieces);
    for (uint32_t i = 0; i < cells * pieces; ++i)
        std::memcpy(&data[size_t{i} * stride_], &data_[size_t{i / pieces} * stride_], stride_);
    data_.swap(data);
    shift_ = shift;
    auto more_readers = std::move(more_readers_);
    auto strong = std::move(strong_);
    more_readers_.clear();
    strong_.clear();
    for (uint32_t piece = 0; piece < pieces; ++piece) {
        for (const auto& [index, readers] : more_readers) more_readers_[index * pieces + piece] = readers;
        for (const auto& [index, accesses] : strong) strong_[index * pieces + piece] = accesses;
    }
}

void SharedCells::read(const Thread& thread, uint32_t offset, uint32_t bytes, Site site, const char* what) {
    fit(bytes);
    const uint32_t least = thread.clock->least, warp = thread.registers.warpid, epoch = thread.epoch;
    for (uint32_t index = offset >> shift_; index < (offset + bytes) >> shift_; ++index) {
        Cell& cell = this->cell(index);
        bool known = cell.write_epoch - 1 < least;  // false for 0 and SEE_STATE
        if (!known && !may_read({thread, offset, bytes, site, what}, index)) return;
        if (cell.reader_warps >> warp & 1 && cell.readers[warp].epoch == epoch)
            cell.readers[warp].lanes |= thread.lane_bit;
        else add_reader(thread, index);
        cell.read_at = site;
    }
}

void SharedCells::write(const Thread& thread, uint32_t offset, uint32_t bytes, Site site, const char* what) {
    fit(bytes);
    const uint32_t least = thread.clock->least;
    for (uint32_t index = offset >> shift_; index < (offset + bytes) >> shift_; ++index) {
        Cell& cell = this->cell(index);
        bool known = cell.write_epoch <= least && cell.reader_warps == 0;  // false for SEE_STATE
        if (!known && !may_write({thread, offset, bytes, site, what}, index)) return;
        set_written(thread, index, site);
    }
}

void SharedCells::strong(const Thread& thread, uint32_t offset, uint32_t bytes, bool reads, bool writes, Scope scope,
                         Site site) {
    fit(bytes);
    const Access access{thread, offset, bytes, site, writes ? "an atomic or strong store" : "a strong load"};
    for (uint32_t index = offset >> shift_; index < (offset + bytes) >> shift_; ++index) {
        Cell& cell = this->cell(index);
        if (!not_in_flight(access, index)) return;
        uint32_t plain_epoch = write_epoch(index);
        StrongCell& strong = strong_[index];
        if (reads && !plain_epoch && !strong.written)
            report("uninitialised", site, "%s of %u bytes at shared memory + %u, which nobody has written", access.what,
                   bytes, offset);
        if (plain_epoch && !knows(thread, thread.block->number, cell.writer, plain_epoch))
            race(access, index, cell.writer, "stored it", cell.written_at);
        else if (writes) after_readers(access, index);
        strong.write_epoch = plain_epoch;
        strong.written |= writes;
        strong.accesses.add({thread.block->number, thread.index, thread.epoch, writes, scope, site});
        cell.state = STRONG;
        cell.write_epoch = SEE_STATE;
    }
}

void SharedCells::copy_begins(const Thread& thread, uint32_t offset, uint32_t bytes, Site site, const char* what) {
    fit(bytes);
    for (uint32_t index = offset >> shift_; index < (offset + bytes) >> shift_; ++index) {
        if (!may_write({thread, offset, bytes, site, what}, index)) return;
        set_written(thread, index, site);
        cell(index).state = IN_FLIGHT;
        cell(index).write_epoch = SEE_STATE;
    }
}

void SharedCells::copy_lands(const Thread& thread, uint32_t offset, uint32_t bytes, Site site) {
    fit(bytes);
    for (uint32_t index = offset >> shift_; index < (offset + bytes) >> shift_; ++index)
        set_written(thread, index, site);
}

// The epoch of the last plain store; 0 if there was none.
uint32_t SharedCells::write_epoch(uint32_t index) {
    const Cell& cell = this->cell(index);
    return cell.state == STRONG ? strong_[index].write_epoch : cell.write_epoch;
}

bool SharedCells::may_read(const Access& access, uint32_t index) {
    const Cell& cell = this->cell(index);
    if (cell.write_epoch == 0) {
        report("uninitialised", access.site, "%s of %u bytes at shared memory + %u, of which byte %u was never written",
               access.what, access.bytes, access.offset, index << shift_);
        return false;
    }
    return not_in_flight(access, index) && after_writes(access, index) && after_strong(access, index, true);
}

bool SharedCells::may_write(const Access& access, uint32_t index) {
    return not_in_flight(access, index) && after_writes(access, index) && after_strong(access, index, false) &&
           after_readers(access, index);
}

bool SharedCells::not_in_flight(const Access& access, uint32_t index) {
    const Cell& cell = this->cell(index);
    if (cell.state != IN_FLIGHT) return true;
    report("in-flight", access.site,
           "%s of %u bytes at shared memory + %u, into which a copy of thread %u, issued at %s, has not landed",
           access.what, access.bytes, access.offset, cell.writer, place(cell.written_at).c_str());
    return false;
}

bool SharedCells::after_writes(const Access& access, uint32_t index) {
    const Cell& cell = this->cell(index);
    if (knows(access.thread, access.thread.block->number, cell.writer, write_epoch(index))) return true;
    return race(access, index, cell.writer, "stored it", cell.written_at);
}

bool SharedCells::after_strong(const Access& access, uint32_t index, bool writes_only) {
    if (cell(index).state != STRONG) return true;
    const StrongAccess* other = strong_[index].accesses.unordered(access.thread, writes_only);
    return !other || race(access, index, other->thread, "accessed it atomically", other->site);
}

bool SharedCells::after_readers(const Access& access, uint32_t index) {
    const Cell& cell = this->cell(index);
    const Clock& clock = *access.thread.clock.get();
    const uint32_t own_warp = access.thread.registers.warpid;
    for (uint32_t left = cell.reader_warps; left; left &= left - 1) {
        const uint32_t warp = __builtin_ctz(left);
        const Readers& readers = cell.readers[warp];
        if (readers.epoch <= clock.warp_least[warp]) continue;
        uint32_t lanes = readers.lanes & ~(warp == own_warp ? access.thread.lane_bit : 0);
        for (; lanes; lanes &= lanes - 1) {
            const uint32_t reader = warp * WARP_LANES + __builtin_ctz(lanes);
            if (clock.epoch[reader] < readers.epoch) return race(access, index, reader, "read it", cell.read_at);
        }
    }
    if (!cell.more_readers) return true;
    for (const Reader& reader : more_readers_[index])
        if (reader.thread != access.thread.index && clock.epoch[reader.thread] < reader.epoch)
            return race(access, index, reader.thread, "read it", cell.read_at);
    return true;
}

// The slow half of noting a read: the first of a warp, or one at another epoch than the warp's last.
void SharedCells::add_reader(const Thread& thread, uint32_t index) {
    Cell& cell = this->cell(index);
    const uint32_t warp = thread.registers.warpid;
    Readers& readers = cell.readers[warp];
    const Clock& clock = *thread.clock.get();
    bool all_known = true;
    if (cell.reader_warps >> warp & 1 && readers.epoch > clock.warp_least[warp])
        for (uint32_t lanes = readers.lanes & ~thread.lane_bit; lanes; lanes &= lanes - 1)
            all_known &= clock.epoch[warp * WARP_LANES + __builtin_ctz(lanes)] >= readers.epoch;
    if (all_known) {
        readers = {thread.epoch, thread.lane_bit};
        cell.reader_warps |= 1u << warp;
        return;
    }
    cell.more_readers = 1;
    std::vector<Reader>& more = more_readers_[index];
    for (Reader& reader : more) {
        if (reader.thread == thread.index) {
            reader.epoch = thread.epoch;
            return;
        }
    }
    more.push_back({thread.index, thread.epoch});
}

void SharedCells::set_written(const Thread& thread, uint32_t index, Site site) {
    Cell& cell = this->cell(index);
    if (cell.more_readers) more_readers_.erase(index);
    if (cell.state == STRONG) strong_.erase(index);
    cell.write_epoch = thread.epoch;
    cell.writer = thread.index;
    cell.written_at = site;
    cell.reader_warps = 0;
    cell.state = PLAIN;
    cell.more_readers = 0;
}

bool SharedCells::race(const Access& access, uint32_t index, uint32_t other, const char* did, Site site) const {
    report("race", access.site,
           "%s of %u bytes at shared memory + %u: nothing orders it after thread %u, which %s (byte %u) at %s",
           access.what, access.bytes, access.offset, other, did, index << shift_, place(site).c_str());
    return false;
}

}  // namespace machine
