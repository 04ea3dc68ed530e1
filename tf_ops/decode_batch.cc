#include "tf_ops/decode_batch.h"

#include <utility>

#include "tf_ops/metrics.h"

namespace genrecall {

DecodeBatch::DecodeBatch(std::shared_ptr<Engine> engine, int64_t rows, std::function<void()> done)
    : results_(rows), engine_(std::move(engine)), done_(std::move(done)) {}

void DecodeBatch::Submit(int64_t row, DecodeRequest request) {
  std::shared_ptr<Engine> engine;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    ++live_;
    engine = engine_;  // Close has not run, so it is there
  }
  auto self = shared_from_this();
  const int64_t tokens = static_cast<int64_t>(request.prompt.size());
  // Not under the mutex: a refused request's callback comes before Submit returns.
  const RequestId id = engine->Submit(std::move(request), [self, row, tokens](DecodeResult result) {
    if (result.status.ok()) metrics::CountPrefix(result.cached_tokens, tokens - result.cached_tokens);
    self->Finished(row, std::move(result));
  });
  bool cancel;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    ids_.push_back(id);
    cancel = cancelled_;
  }
  if (cancel) engine->Cancel(id);
}

void DecodeBatch::Close() { EndOne(); }

void DecodeBatch::Cancel() {
  std::shared_ptr<Engine> engine;
  std::vector<RequestId> ids;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    cancelled_ = true;
    engine = engine_;
    ids = ids_;
  }
  if (engine == nullptr) return;
  for (RequestId id : ids) engine->Cancel(id);
}

void DecodeBatch::Finished(int64_t row, DecodeResult result) {
  const std::chrono::duration<double, std::milli> latency = Clock::now() - start_;
  metrics::CountDecoded(result.status.code(), latency.count());
  results_[row] = std::move(result);
  EndOne();
}

void DecodeBatch::EndOne() {
  std::shared_ptr<Engine> engine;
  std::function<void()> done;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (--live_ > 0) return;
    engine = std::move(engine_);
    done = std::move(done_);
  }
  engine.reset();
  done();
}

}  // namespace genrecall
