// The rows of one batch while an engine decodes them. Knows no TensorFlow.
#ifndef GENRECALL_TF_OPS_DECODE_BATCH_H_
#define GENRECALL_TF_OPS_DECODE_BATCH_H_

#include <chrono>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "trtllm_bridge/engine.h"

namespace genrecall {

// Thread-safe. Submit the rows, then Close(); `done` runs once, when every submitted row has ended, on the
// thread that ended the last one, or in Close(). The results are then complete and nothing writes to them any
// more.
class DecodeBatch : public std::enable_shared_from_this<DecodeBatch> {
 public:
  using Clock = std::chrono::steady_clock;

  DecodeBatch(std::shared_ptr<Engine> engine, int64_t rows, std::function<void()> done);

  void Submit(int64_t row, DecodeRequest request);
  void Close();
  // Cancels what is live and what is yet to be submitted. Callable at any time, also after the end.
  void Cancel();

  // One a row; a row that was not submitted has the default: OK, width 0.
  const std::vector<DecodeResult>& results() const { return results_; }
  Clock::time_point start() const { return start_; }

 private:
  void Finished(int64_t row, DecodeResult result);
  void EndOne();

  const Clock::time_point start_ = Clock::now();
  std::vector<DecodeResult> results_;  // each row is written by its own callback only
  std::mutex mutex_;
  // Let go before `done`, so that an engine's own thread is never the one to destroy the engine.
  std::shared_ptr<Engine> engine_;
  std::function<void()> done_;
  std::vector<RequestId> ids_;
  int64_t live_ = 1;  // rows that have not ended, and one until Close
  bool cancelled_ = false;
};

}  // namespace genrecall

#endif  // GENRECALL_TF_OPS_DECODE_BATCH_H_
