// The embedded engine: decodes on this machine's CPUs. Two threads: one runs steps, one delivers results.
#ifndef GENRECALL_TRTLLM_BRIDGE_CPU_ENGINE_H_
#define GENRECALL_TRTLLM_BRIDGE_CPU_ENGINE_H_

#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "kernels/cpu_isa.h"
#include "trtllm_bridge/decoder.h"
#include "trtllm_bridge/engine.h"
#include "trtllm_bridge/weights.h"

namespace genrecall {

class CpuEngine : public Engine {
 public:
  // Errors: INVALID_ARGUMENT for options out of bounds ("max_step_rows = 0: expected 1..65536"), for
  // GENRECALL_CPU_ISA and GENRECALL_CPU_THREADS.
  static Result<std::shared_ptr<CpuEngine>> Create(std::shared_ptr<const DecoderWeights> weights,
                                                   const EngineOptions& options);
  // Outstanding requests get UNAVAILABLE; all callbacks have returned when it returns (except that of the
  // callback it is called from).
  ~CpuEngine() override;

  const std::string& name() const override;
  const SidSpace& sid_space() const override;
  int hidden_size() const override;
  int max_prompt_tokens() const override;
  RequestId Submit(DecodeRequest request, DecodeCallback callback) override;
  void Cancel(RequestId id) override;
  EngineStats stats() const override;
  void RecordSteps(bool on) override;
  std::vector<StepRecord> TakeStepLog() override;

  const DecoderWeights& weights() const;
  CpuIsa isa() const;
  int num_threads() const;

  // Logits [T, V] of a prompt in one prefill, with no cache and no trie: to compare the forward pass with
  // another's. INVALID_ARGUMENT as for a prompt.
  Result<std::vector<float>> ForwardLogits(const std::vector<int32_t>& tokens);
  // Shows all that enters the layers' gemms in one prefill of a prompt. INVALID_ARGUMENT as for a prompt.
  Status ObserveForward(const std::vector<int32_t>& tokens, GemmObserver observer);

 private:
  class Core;
  // One prefill of a prompt apart from the requests, then `after` on what it left in the decoder.
  Status Prefill(const std::vector<int32_t>& tokens, GemmObserver observer,
                 const std::function<void(Decoder*, ThreadPool*)>& after);
  explicit CpuEngine(std::shared_ptr<Core> core);

  std::shared_ptr<Core> core_;  // the threads hold it too
  std::thread step_thread_, callback_thread_;
};

}  // namespace genrecall

#endif  // GENRECALL_TRTLLM_BRIDGE_CPU_ENGINE_H_
