#include "memory.hpp"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>

#include "findings.hpp"

namespace machine {

namespace {

// All arrays lie in one reserved range, each in granules of its own with at least one untouchable granule after it,
// so that an address leads to its array by one look into a table.
constexpr uint64_t ARENA_BYTES = 4ull << 40, GRANULE_BYTES = 65536;
constexpr uint64_t HEAD_BYTES =
    256;  // an array starts so far into its first granule: aligned to 256 bytes and no better

struct Arena {
    uint8_t* start = nullptr;
    uint64_t next = 1;                            // granule
    LazyArray<uint32_t> owner;                    // of each granule: index into `arrays`; 0: none
    std::vector<std::unique_ptr<Array>> arrays;   // the first owns nothing
};

Arena& arena() {
    static Arena arena;
    if (arena.arrays.empty()) {
        void* memory = mmap(nullptr, ARENA_BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        arena.start = memory == MAP_FAILED ? nullptr : static_cast<uint8_t*>(memory);
        arena.owner = LazyArray<uint32_t>(ARENA_BYTES / GRANULE_BYTES);
        arena.arrays.push_back(std::make_unique<Array>());
    }
    return arena;
}

std::vector<Array*>& static_arrays() {
    static std::vector<Array*> arrays;
    return arrays;
}

bool lies_in(const Array& array, uint64_t address, uint32_t bytes) {
    uint64_t offset = offset_in(array, address);
    return offset < array.bytes && bytes <= array.bytes - offset;
}

std::string unsigned_text(uint64_t number) { return std::to_string(number); }

// Where an address outside every array lies: before or after the nearest one.
std::string nearest_text(uint64_t address) {
    const Array* nearest = nullptr;
    uint64_t least = ~0ull;
    for (const auto& array : arena().arrays) {
        if (!array || !array->data) continue;
        uint64_t start = reinterpret_cast<uint64_t>(array->data), end = start + array->bytes;
        uint64_t distance = address < start ? start - address : address < end ? 0 : address - end;
        if (distance < least) {
            least = distance;
            nearest = array.get();
        }
    }
    if (!nearest) return "there are no arrays";
    std::string name = "'" + nearest->name + "' (" + unsigned_text(nearest->bytes) + " bytes)";
    int64_t offset = int64_t(offset_in(*nearest, address));
    if (offset < 0) return "the nearest array " + name + " starts " + unsigned_text(-offset) + " bytes later";
    return "it is byte " + unsigned_text(offset) + " counted from the start of the nearest array, " + name;
}

Array* create_array(uint64_t bytes, const char* name, uint32_t flags) {
    Arena& arena = machine::arena();
    uint64_t granules = (HEAD_BYTES + bytes + GRANULE_BYTES - 1) / GRANULE_BYTES;
    if (!arena.start || arena.next + granules + 1 > ARENA_BYTES / GRANULE_BYTES) return nullptr;
    uint8_t* memory = arena.start + arena.next * GRANULE_BYTES;
    uint64_t used = (HEAD_BYTES + bytes + PAGE_BYTES - 1) / PAGE_BYTES * PAGE_BYTES;
    if (mprotect(memory, used, PROT_READ | PROT_WRITE)) return nullptr;
    auto array = std::make_unique<Array>();
    array->data = memory + HEAD_BYTES;
    array->bytes = bytes;
    array->name = name;
    array->flags = flags;
    if (!(flags & MACHINE_SPARSE)) std::memset(array->data, POISON, bytes);
    auto free_index = std::find(arena.arrays.begin() + 1, arena.arrays.end(), nullptr);
    uint32_t index = free_index - arena.arrays.begin();
    if (free_index == arena.arrays.end()) arena.arrays.emplace_back();
    for (uint64_t i = 0; i < granules; ++i) arena.owner[arena.next + i] = index;
    arena.next += granules + 1;
    arena.arrays[index] = std::move(array);
    return arena.arrays[index].get();
}

Array* array_at(void* data) {
    Arena& arena = machine::arena();
    uint64_t offset = static_cast<uint8_t*>(data) - arena.start;
    if (offset >= ARENA_BYTES) return nullptr;
    Array* array = arena.arrays[arena.owner[offset / GRANULE_BYTES]].get();
    return array->data == data ? array : nullptr;
}

void destroy_array(Array& array) {
    Arena& arena = machine::arena();
    uint64_t first = (array.data - arena.start) / GRANULE_BYTES;
    uint64_t granules = (HEAD_BYTES + array.bytes + GRANULE_BYTES - 1) / GRANULE_BYTES;
    uint32_t index = arena.owner[first];
    for (uint64_t i = 0; i < granules; ++i) arena.owner[first + i] = 0;
    mmap(arena.start + first * GRANULE_BYTES, granules * GRANULE_BYTES, PROT_NONE,
         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
    arena.arrays[index].reset();
}

// Clears what is known of an array since an earlier launch.
void start_launch(Array& array) {
    if (array.checked_in == launch.number) return;
    array.checked_in = launch.number;
    if (array.flags & MACHINE_WRITE_ONCE) {
        if (array.written.size()) array.written.clear();
        else array.written = LazyArray<uint16_t>((array.bytes + 15) / 16);
    }
    if (array.flags & MACHINE_BETWEEN_BLOCKS) {
        if (!array.cells) array.cells = std::make_unique<GlobalCells>();
        array.cells->start(array.bytes);
    }
}

void check_written_once(Array& array, uint64_t offset, uint32_t bytes, Site site) {
    start_launch(array);
    uint16_t& bits = array.written[offset / 16];
    const uint16_t stored = ((1u << bytes) - 1) << offset % 16;
    if (bits & stored)
        report("write-once", site, "a store of %u bytes at '%s' + %llu, where this launch has stored before", bytes,
               array.name.c_str(), (unsigned long long)offset);
    bits |= stored;
}

}  // namespace

Array* find_array(uint64_t address, uint32_t bytes) {
    static Arena& arena = machine::arena();
    uint64_t offset = address - reinterpret_cast<uint64_t>(arena.start);
    if (offset < ARENA_BYTES) {
        Array* array = arena.arrays[arena.owner[offset / GRANULE_BYTES]].get();
        return lies_in(*array, address, bytes) ? array : nullptr;
    }
    for (Array* array : static_arrays())
        if (lies_in(*array, address, bytes)) return array;
    return nullptr;
}

Array& array_of(uint64_t address, uint32_t bytes, Site site, const char* what) {
    Array* array = find_array(address, bytes);
    if (!array)
        stop("out-of-bounds", site, "%s of %u bytes at global address 0x%llx, outside every array: %s", what, bytes,
             (unsigned long long)address, nearest_text(address).c_str());
    if (address & (bytes - 1))
        stop("misaligned", site, "%s of %u bytes at '%s' + %llu, which is no multiple of %u", what, bytes,
             array->name.c_str(), (unsigned long long)offset_in(*array, address), bytes);
    return *array;
}

bool check_store(Array& array, uint64_t offset, uint32_t bytes, Site site) {
    if (array.flags & MACHINE_READ_ONLY) {
        report("read-only", site, "a store of %u bytes at '%s' + %llu, which is an input", bytes, array.name.c_str(),
               (unsigned long long)offset);
        return false;
    }
    if (array.flags & MACHINE_WRITE_ONCE) check_written_once(array, offset, bytes, site);
    return true;
}

GlobalCells& cells_of(Array& array) {
    start_launch(array);
    return *array.cells;
}

StaticArray::StaticArray(const char* name, const void* data, size_t bytes, bool writable) : data(data) {
    auto array = new Array;
    array->data = static_cast<uint8_t*>(const_cast<void*>(data));
    array->bytes = bytes;
    array->name = name;
    array->flags = writable ? 0 : MACHINE_READ_ONLY;
    static_arrays().push_back(array);
}

StaticArray::~StaticArray() {
    std::vector<Array*>& arrays = static_arrays();
    auto found = std::find_if(arrays.begin(), arrays.end(), [&](Array* array) { return array->data == data; });
    if (found == arrays.end()) return;
    delete *found;
    arrays.erase(found);
}

}  // namespace machine

extern "C" void* machine_create(uint64_t bytes, const char* name, uint32_t flags) {
    std::lock_guard<std::mutex> lock(machine::one_at_a_time);
    machine::Array* array = machine::create_array(bytes, name, flags);
    return array ? array->data : nullptr;
}

extern "C" int machine_destroy(void* data) {
    std::lock_guard<std::mutex> lock(machine::one_at_a_time);
    machine::Array* array = machine::array_at(data);
    if (!array) return 1;
    machine::destroy_array(*array);
    return 0;
}

extern "C" int machine_describe(void* data, const char* name, uint32_t flags) {
    std::lock_guard<std::mutex> lock(machine::one_at_a_time);
    machine::Array* array = machine::array_at(data);
    if (!array) return 1;
    if (name) array->name = name;
    array->flags = flags;
    array->checked_in = 0;
    return 0;
}
