// The happens-before shadow of a block's shared memory: who last wrote each cell and who has read it since.
//
// A cell covers 4 bytes until the kernel makes a narrower access, then 2 or 1 for the rest of the launch, so that
// neighbours in one word are no race. Reads are kept per warp as (epoch, lanes): lanes that synchronised together
// share their epoch. What does not fit (lanes of one warp at several epochs, strong accesses) lies beside the cells.
#pragma once
#include <string>
#include <unordered_map>
#include <vector>

#include "clocks.hpp"
#include "machine.hpp"
#include "strong.hpp"

namespace machine {

class SharedCells {
public:
    void start(uint32_t bytes, uint32_t warps, bool first_of_launch);  // for a new block: nothing written
    // Each access is checked and noted; a finding names `what` was done ("a load", say) at this byte offset.
    void read(const Thread& thread, uint32_t offset, uint32_t bytes, Site site, const char* what);
    void write(const Thread& thread, uint32_t offset, uint32_t bytes, Site site, const char* what);
    void strong(const Thread& thread, uint32_t offset, uint32_t bytes, bool reads, bool writes, Scope scope, Site site);
    // A copy into these bytes is in flight until it lands; nobody may touch them meanwhile.
    void copy_begins(const Thread& thread, uint32_t offset, uint32_t bytes, Site site, const char* what);
    void copy_lands(const Thread& thread, uint32_t offset, uint32_t bytes, Site site);

private:
    static constexpr uint32_t SEE_STATE = ~0u, NOBODY = ~0u;
    enum State : uint16_t { PLAIN, IN_FLIGHT, STRONG };
    struct Readers {
        uint32_t epoch, lanes;
    };
    struct Cell {
        uint32_t write_epoch;   // 0: never written; SEE_STATE: not plain
        uint32_t writer;        // thread
        Site written_at, read_at;
        uint32_t reader_warps;  // which of `readers` count
        State state;
        uint16_t more_readers;  // 1: some are in the table
        Readers readers[];      // one per warp
    };
    struct StrongCell {
        uint32_t write_epoch;   // of the plain store before
        bool written;           // by a strong access
        StrongSet accesses;
    };
    struct Reader {
        uint32_t thread, epoch;
    };
    struct Access {
        const Thread& thread;
        uint32_t offset, bytes;
        Site site;
        const char* what;
    };

    Cell& cell(uint32_t index) { return *reinterpret_cast<Cell*>(data_.data() + size_t{index} * stride_); }
    uint32_t write_epoch(uint32_t index);
    void fit(uint32_t bytes) {
        if (bytes >> shift_ == 0) narrow(__builtin_ctz(bytes));
    }
    void narrow(uint32_t shift);
    bool may_read(const Access& access, uint32_t index);
    bool may_write(const Access& access, uint32_t index);
    bool not_in_flight(const Access& access, uint32_t index);
    bool after_writes(const Access& access, uint32_t index);
    bool after_readers(const Access& access, uint32_t index);
    bool after_strong(const Access& access, uint32_t index, bool writes_only);
    void add_reader(const Thread& thread, uint32_t index);
    void set_written(const Thread& thread, uint32_t index, Site site);
    bool race(const Access& access, uint32_t index, uint32_t other, const char* did, Site site) const;

    std::vector<uint8_t> data_;
    uint32_t stride_ = 0, shift_ = 2;  // a cell covers 1 << shift_ bytes
    std::unordered_map<uint32_t, std::vector<Reader>> more_readers_;
    std::unordered_map<uint32_t, StrongCell> strong_;
};

}  // namespace machine
