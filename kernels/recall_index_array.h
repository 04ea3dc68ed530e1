// A read-only array of the recall index: memory of its own that was never zero-filled, or a borrowed piece of
// a file held in memory. Copies share the memory.
#ifndef GENRECALL_KERNELS_RECALL_INDEX_ARRAY_H_
#define GENRECALL_KERNELS_RECALL_INDEX_ARRAY_H_

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <type_traits>

namespace genrecall {

template <typename T>
class IndexArray {
  static_assert(std::is_trivial<T>::value, "elements are neither constructed nor destroyed");

 public:
  IndexArray() = default;
  // `data` lives as long as `owner`.
  IndexArray(const T* data, size_t size, std::shared_ptr<const void> owner)
      : data_(data), size_(size), owner_(std::move(owner)) {}

  // `size` uninitialised elements; *writable is where to fill them in, before the array is shared.
  static IndexArray Allocate(size_t size, T** writable) {
    void* memory = std::malloc(size * sizeof(T) + 1);
    if (memory == nullptr) throw std::bad_alloc();
    *writable = static_cast<T*>(memory);
    return IndexArray(*writable, size, std::shared_ptr<const void>(memory, &std::free));
  }

  const T& operator[](size_t i) const { return data_[i]; }
  const T* data() const { return data_; }
  size_t size() const { return size_; }
  bool empty() const { return size_ == 0; }
  const T* begin() const { return data_; }
  const T* end() const { return data_ + size_; }
  int64_t bytes() const { return static_cast<int64_t>(size_ * sizeof(T)); }

 private:
  const T* data_ = nullptr;
  size_t size_ = 0;
  std::shared_ptr<const void> owner_;
};

}  // namespace genrecall

#endif  // GENRECALL_KERNELS_RECALL_INDEX_ARRAY_H_
