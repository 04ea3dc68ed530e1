// What the ops that answer with items share: a request row's exclusions, and writing an item list as a padded
// row.
#ifndef GENRECALL_TF_OPS_ITEM_ROWS_H_
#define GENRECALL_TF_OPS_ITEM_ROWS_H_

#include <algorithm>
#include <cstdint>
#include <vector>

#include "tf_ops/dims.h"

namespace genrecall {

// Inputs "exclude_item" [B, E], "exclude_length" [B] and "num_items" [B] of an op; rows are checked one by
// one, since those of refused requests are not looked at.
struct AnswerOptions {
  const int64_t* exclude_item = nullptr;
  const int32_t* exclude_length = nullptr;
  const int32_t* num_items = nullptr;
  int64_t max_excluded = 0;  // E
  int64_t k = 0;

  absl::Status Read(tensorflow::OpKernelContext* ctx, int64_t max_items, InputDims* dims) {
    TF_RETURN_IF_ERROR(dims->Input(ctx, "exclude_item", "BE", &exclude_item));
    TF_RETURN_IF_ERROR(dims->Input(ctx, "exclude_length", "B", &exclude_length));
    TF_RETURN_IF_ERROR(dims->Input(ctx, "num_items", "B", &num_items));
    max_excluded = (*dims)['E'];
    k = max_items;
    return absl::OkStatus();
  }
  absl::Status CheckRow(int64_t b) const {
    TF_RETURN_IF_ERROR(CheckLength("exclude_length", b, exclude_length[b], 'E', max_excluded));
    return CheckRange("num_items", b, num_items[b], 1, k, "k");
  }
  const int64_t* excluded(int64_t b) const { return exclude_item + b * max_excluded; }
};

// Writes `values` to row b of a [B, k] output and pads the row.
template <typename T>
void WriteRow(const std::vector<T>& values, int64_t b, int64_t k, T padding, T* out) {
  T* end = std::copy(values.begin(), values.end(), out + b * k);
  std::fill(end, out + (b + 1) * k, padding);
}

}  // namespace genrecall

#endif  // GENRECALL_TF_OPS_ITEM_ROWS_H_
