// The happens-before shadow of a global array that blocks share: as shared_cells.hpp, but between all threads of the
// grid and made for arrays of which little is touched. A launch begins with nothing in it: all that was before is
// ordered.
#pragma once
#include <vector>

#include "lazy_array.hpp"
#include "machine.hpp"
#include "strong.hpp"

namespace machine {

class GlobalCells {
public:
    void start(uint64_t bytes);  // of the array, for a new launch
    void read(const Thread& thread, const char* name, uint64_t offset, uint32_t bytes, Site site);
    void write(const Thread& thread, const char* name, uint64_t offset, uint32_t bytes, Site site);
    void strong(const Thread& thread, const char* name, uint64_t offset, uint32_t bytes, bool writes, Scope scope,
                Site site);

private:
    struct Readers {  // lanes of one warp
        uint32_t block, warp, epoch, lanes;
        Site site;
    };
    struct Uses {  // since the last plain store
        std::vector<Readers> readers;
        StrongSet accesses;
    };
    struct Cell {
        uint32_t write_epoch, writer_block, writer;  // epoch 0: not written in this launch
        uint32_t uses;  // place in `uses_` plus one; 0: none
        Site written_at;
    };
    struct Access {
        const Thread& thread;
        const char *name, *what;
        uint64_t offset;
        uint32_t bytes;
        Site site;
    };

    void fit(uint32_t bytes);
    Uses& uses(Cell& cell);
    bool after_write(const Access& access, uint64_t index) const;
    bool after_readers(const Access& access, uint64_t index) const;
    bool after_strong(const Access& access, uint64_t index, bool writes_only) const;
    void add_reader(const Access& access, Cell& cell);
    bool race(const Access& access, uint64_t index, uint32_t block, uint32_t thread, const char* did, Site site) const;

    LazyArray<Cell> cells_;
    std::vector<Uses> uses_;
    uint32_t shift_ = 2;  // a cell covers 1 << shift_ bytes
};

}  // namespace machine
