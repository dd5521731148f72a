// What a walk over the layers remembers between two of them, listed once for both directions: a journal saves it from
// where it is and restores it to there.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "dynslice/support/json.h"
#include "dynslice/walk/residual_stream.h"

namespace dynslice {

// Each `keep` names a variable, which must outlive the state. Names are unique.
struct WalkState {
  struct Value {
    std::string name;
    std::function<OrderedJson()> saved;
    std::function<void(const OrderedJson&)> restore;
  };
  struct Tensor {
    std::string name;
    at::Tensor* tensor;
    bool on_host;  // restored to the CPU, whatever the walk's device
  };
  struct Stream {
    std::string name;
    ResidualStream* stream;
  };

  // A small value of any type that JSON converts.
  template <typename T>
  void keep(std::string name, T& value) {
    values.push_back({std::move(name), [&value] { return OrderedJson(value); },
                      [&value](const OrderedJson& saved) { saved.get_to(value); }});
  }
  // An undefined tensor is restored as one.
  void keep(std::string name, at::Tensor& tensor) { tensors.push_back({std::move(name), &tensor, false}); }
  void keep_on_host(std::string name, at::Tensor& tensor) { tensors.push_back({std::move(name), &tensor, true}); }
  // Its chunks are restored to where its store keeps chunks.
  void keep(std::string name, ResidualStream& stream) { streams.push_back({std::move(name), &stream}); }

  std::vector<Value> values;
  std::vector<Tensor> tensors;
  std::vector<Stream> streams;
};

}  // namespace dynslice
