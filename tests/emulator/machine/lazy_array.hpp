// Zeros in any number that take up memory only where they were touched.
#pragma once
#include <sys/mman.h>

#include <cstddef>
#include <new>
#include <type_traits>
#include <utility>

namespace machine {

template <class T>
class LazyArray {
    static_assert(std::is_trivially_copyable<T>::value, "zero bytes must be a value of T");

public:
    LazyArray() = default;
    explicit LazyArray(size_t size) : size_(size) {
        if (!size) return;
        void* memory =
            mmap(nullptr, size * sizeof(T), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (memory == MAP_FAILED) throw std::bad_alloc();
        data_ = static_cast<T*>(memory);
    }
    LazyArray(LazyArray&& other) noexcept { *this = std::move(other); }
    LazyArray& operator=(LazyArray&& other) noexcept {
        std::swap(data_, other.data_);
        std::swap(size_, other.size_);
        return *this;
    }
    ~LazyArray() {
        if (data_) munmap(data_, size_ * sizeof(T));
    }
    void clear() {
        if (data_) madvise(data_, size_ * sizeof(T), MADV_DONTNEED);
    }
    T& operator[](size_t i) { return data_[i]; }
    const T& operator[](size_t i) const { return data_[i]; }
    size_t size() const { return size_; }

private:
    T* data_ = nullptr;
    size_t size_ = 0;
};

}  // namespace machine
