// A binary that links genrecall's ops as a TF Serving build does finds them all registered: the linker
// dropped none.
#include <cstdio>
#include <string>

#include "tensorflow/core/framework/op.h"

int main() {
  int missing = 0;
  for (const char* name : {"AcquireIndex", "CheckRequest", "CleanBehaviors", "LookupSemanticIds",
                           "AssemblePrompt", "ConstrainedBeamSearch", "ExpandItems", "PopularItems",
                           "MergeBranches", "TryBranch", "MetricsText"}) {
    const tensorflow::OpDef* op = nullptr;
    const std::string full = std::string("Genrecall>") + name;
    const bool found = tensorflow::OpRegistry::Global()->LookUpOpDef(full, &op).ok();
    std::printf("%s %s\n", full.c_str(), found ? "registered" : "MISSING");
    missing += !found;
  }
  return missing;
}
