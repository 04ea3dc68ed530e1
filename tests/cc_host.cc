// A server without Python: loads op libraries and a SavedModel, runs a signature as TF Serving would, writes
// the answer.
//
//   cc_host MODEL SIGNATURE LIBRARY[,LIBRARY...] REQUEST_DIR ANSWER_DIR [REQUEST_DIR ANSWER_DIR ...]
//
// REQUEST_DIR holds a serialized TensorProto per input, named <input>.pb; inputs that are not there take the
// signature's default. ANSWER_DIR gets a TensorProto per output and `elapsed_ms`, or `error` with code and
// message. Requests run one after another, with GENRECALL_HOST_PAUSE_MS between them. Exit status 1: the
// model did not load.
#include <chrono>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <sstream>
#include <thread>

#include "tensorflow/c/c_api.h"
#include "tensorflow/cc/saved_model/loader.h"
#include "tensorflow/core/framework/tensor.h"
#include "tensorflow/core/framework/tensor.pb.h"
#include "tensorflow/core/protobuf/meta_graph.pb.h"
#include "tensorflow/core/public/session.h"

namespace {

using tensorflow::Tensor;
using tensorflow::TensorProto;
using Tensors = std::vector<std::pair<std::string, Tensor>>;

bool ReadFile(const std::string& path, std::string* bytes) {
  std::ifstream in(path, std::ios::binary);
  if (!in) return false;
  std::ostringstream all;
  all << in.rdbuf();
  *bytes = all.str();
  return true;
}

void WriteFile(const std::string& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary) << bytes;
}

void LoadLibraries(const std::string& paths) {
  std::istringstream list(paths);
  for (std::string path; std::getline(list, path, ',');) {
    TF_Status* status = TF_NewStatus();
    TF_LoadLibrary(path.c_str(), status);
    if (TF_GetCode(status) != TF_OK) {
      std::cerr << path << ": " << TF_Message(status) << "\n";
      std::exit(1);
    }
    TF_DeleteStatus(status);
  }
}

absl::Status ReadInputs(const tensorflow::SignatureDef& signature, const std::string& dir, Tensors* feeds) {
  for (const auto& [name, info] : signature.inputs()) {
    TensorProto proto;
    std::string bytes;
    const auto fallback = signature.defaults().find(name);
    if (ReadFile(dir + "/" + name + ".pb", &bytes)) {
      proto.ParseFromString(bytes);
    } else if (fallback != signature.defaults().end()) {
      proto = fallback->second;
    } else {
      return absl::InvalidArgumentError("input '" + name + "' is missing and has no default");
    }
    Tensor tensor;
    if (!tensor.FromProto(proto)) return absl::InvalidArgumentError("input '" + name + "' is no TensorProto");
    feeds->emplace_back(info.name(), tensor);
  }
  return absl::OkStatus();
}

absl::Status RunRequest(const tensorflow::SavedModelBundle& model, const tensorflow::SignatureDef& signature,
                        const std::string& request_dir, const std::string& answer_dir) {
  Tensors feeds;
  TF_RETURN_IF_ERROR(ReadInputs(signature, request_dir, &feeds));
  std::vector<std::string> names, fetches;
  for (const auto& [name, info] : signature.outputs()) {
    names.push_back(name);
    fetches.push_back(info.name());
  }
  std::vector<Tensor> outputs;
  const auto start = std::chrono::steady_clock::now();
  TF_RETURN_IF_ERROR(model.session->Run(feeds, fetches, {}, &outputs));
  const std::chrono::duration<double, std::milli> elapsed = std::chrono::steady_clock::now() - start;
  for (size_t i = 0; i < names.size(); ++i) {
    TensorProto proto;
    outputs[i].AsProtoTensorContent(&proto);
    WriteFile(answer_dir + "/" + names[i] + ".pb", proto.SerializeAsString());
  }
  WriteFile(answer_dir + "/elapsed_ms", std::to_string(elapsed.count()));
  return absl::OkStatus();
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 6 || argc % 2 != 0) {
    std::cerr << "usage: cc_host MODEL SIGNATURE LIBRARY[,LIBRARY...] REQUEST_DIR ANSWER_DIR [...]\n";
    return 2;
  }
  LoadLibraries(argv[3]);
  tensorflow::SavedModelBundle model;
  const absl::Status loaded = tensorflow::LoadSavedModel(
      tensorflow::SessionOptions(), tensorflow::RunOptions(), argv[1], {"serve"}, &model);
  if (!loaded.ok()) {
    std::cerr << "LoadSavedModel: " << loaded << "\n";
    return 1;
  }
  const auto& signatures = model.meta_graph_def.signature_def();
  const auto signature = signatures.find(argv[2]);
  if (signature == signatures.end()) {
    std::cerr << "no signature '" << argv[2] << "'\n";
    return 2;
  }
  const char* pause = std::getenv("GENRECALL_HOST_PAUSE_MS");
  for (int i = 4; i < argc; i += 2) {
    if (i > 4 && pause != nullptr) std::this_thread::sleep_for(std::chrono::milliseconds(std::atoi(pause)));
    const absl::Status status = RunRequest(model, signature->second, argv[i], argv[i + 1]);
    if (!status.ok()) {
      WriteFile(std::string(argv[i + 1]) + "/error",
                std::to_string(static_cast<int>(status.code())) + "\n" + std::string(status.message()));
    }
  }
  return 0;
}
