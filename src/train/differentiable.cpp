#include "train/differentiable.h"

#include <torch/csrc/autograd/custom_function.h>

#include <optional>

#include "aten.h"
#include "dynslice/tensor/kernels.h"

namespace dynslice::differentiable {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

at::Tensor as_rows(const at::Tensor& x) { return x.reshape({-1, x.size(-1)}); }

at::Tensor as(const at::Tensor& x, at::ScalarType dtype) { return x.scalar_type() == dtype ? x : x.to(dtype); }

// Tensors are kept in `saved_data`: none of them is changed in place between forward and backward, and a weight of a
// model that is only read needs no version of its own.
at::Tensor kept(const AutogradContext* context, const char* name) { return context->saved_data.at(name).toTensor(); }

at::Tensor kept_or_none(const AutogradContext* context, const char* name) {
  const auto found = context->saved_data.find(name);
  return found == context->saved_data.end() ? at::Tensor() : found->second.toTensor();
}

// How a tensor that may be missing goes into a function of autograd's.
std::optional<at::Tensor> optional(const at::Tensor& x) {
  return x.defined() ? std::optional<at::Tensor>(x) : std::nullopt;
}

struct LinearFunction : torch::autograd::Function<LinearFunction> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x, const at::Tensor& weight,
                            const std::optional<at::Tensor>& bias, int64_t dtype_code) {
    const auto dtype = static_cast<at::ScalarType>(dtype_code);
    const at::Tensor input = as(x, dtype), matrix = as(weight, dtype);
    context->saved_data["matrix"] = matrix;
    if (weight.requires_grad()) context->saved_data["input"] = input;
    context->saved_data["x dtype"] = static_cast<int64_t>(x.scalar_type());
    context->saved_data["weight dtype"] = static_cast<int64_t>(weight.scalar_type());
    context->saved_data["needs x"] = x.requires_grad();
    context->saved_data["needs bias"] = bias.has_value() && bias->requires_grad();
    return as(kernels::linear(input, matrix, bias ? as(*bias, dtype) : at::Tensor()), dtype);
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const at::Tensor matrix = kept(context, "matrix"), input = kept_or_none(context, "input");
    const at::Tensor g = as(as_rows(gradients[0]), matrix.scalar_type());
    at::Tensor of_x, of_weight, of_bias;
    if (context->saved_data["needs x"].toBool()) {
      auto sizes = gradients[0].sizes().vec();
      sizes.back() = matrix.size(1);
      of_x = as(kernels::matmul(g, matrix).view(sizes),
                static_cast<at::ScalarType>(context->saved_data["x dtype"].toInt()));
    }
    if (input.defined()) {
      of_weight = as(kernels::matmul(g.t(), as_rows(input)),
                     static_cast<at::ScalarType>(context->saved_data["weight dtype"].toInt()));
    }
    if (context->saved_data["needs bias"].toBool()) of_bias = as(g, at::kFloat).sum(0);
    return {of_x, of_weight, of_bias, {}};
  }
};

struct RmsNormFunction : torch::autograd::Function<RmsNormFunction> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x, const std::optional<at::Tensor>& weight,
                            int64_t divisor, double eps, int64_t dtype_code) {
    context->saved_data["x"] = x;
    if (weight) context->saved_data["weight"] = *weight;
    context->saved_data["divisor"] = divisor;
    context->saved_data["eps"] = eps;
    context->saved_data["needs weight"] = weight.has_value() && weight->requires_grad();
    return kernels::rms_norm(x, weight.value_or(at::Tensor()), divisor, eps, static_cast<at::ScalarType>(dtype_code));
  }

  // With r = (Σ x² / D + eps)^(-1/2) and h = g * weight: r h - x (r³ / D) Σ x h, and Σ g x r for the weight.
  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const at::Tensor x = kept(context, "x"), weight = kept_or_none(context, "weight");
    const auto divisor = static_cast<double>(context->saved_data["divisor"].toInt());
    const at::Tensor g = as(gradients[0], at::kFloat);
    const at::Tensor r = at::rsqrt(x.square().sum(-1, true) / divisor + context->saved_data["eps"].toDouble());
    const at::Tensor h = weight.defined() ? g * weight : g;
    const at::Tensor along = (x * h).sum(-1, true) * r.pow(3) / divisor;
    at::Tensor of_weight;
    if (context->saved_data["needs weight"].toBool()) of_weight = as_rows(g * x * r).sum(0);
    return {h.mul(r).addcmul_(x, along, -1), of_weight, {}, {}, {}};
  }
};

struct RopeFunction : torch::autograd::Function<RopeFunction> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& qkv, int64_t heads, const at::Tensor& cos,
                            const at::Tensor& sin, bool is_interleaved) {
    context->saved_data["heads"] = heads;
    context->saved_data["interleaved"] = is_interleaved;
    context->saved_data["cos"] = cos;
    context->saved_data["sin"] = sin;
    return rotated(qkv, heads, cos, sin, is_interleaved);
  }

  // Rotates back.
  static variable_list backward(AutogradContext* context, variable_list gradients) {
    return {rotated(gradients[0], context->saved_data["heads"].toInt(), kept(context, "cos"), -kept(context, "sin"),
                    context->saved_data["interleaved"].toBool()),
            {},
            {},
            {},
            {}};
  }

  static at::Tensor rotated(const at::Tensor& qkv, int64_t heads, const at::Tensor& cos, const at::Tensor& sin,
                            bool is_interleaved) {
    at::Tensor result = qkv.clone(at::MemoryFormat::Contiguous);
    kernels::apply_rope_(result, heads, cos, sin, is_interleaved);
    return result;
  }
};

at::Tensor act_backward(const at::Tensor& gradient, const at::Tensor& x, Activation activation) {
  switch (activation) {
    case Activation::kSilu:
      return at::silu_backward(gradient, x);
    case Activation::kRelu:
      return gradient * x.gt(0);
    case Activation::kGeluTanh:
      return at::gelu_backward(gradient, x, "tanh");
  }
  return gradient;
}

struct ActMulFunction : torch::autograd::Function<ActMulFunction> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& gate_up, int64_t activation) {
    context->saved_data["gate_up"] = gate_up;
    context->saved_data["activation"] = activation;
    return kernels::act_mul(gate_up, static_cast<Activation>(activation));
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const at::Tensor gate_up = kept(context, "gate_up");
    const auto activation = static_cast<Activation>(context->saved_data["activation"].toInt());
    const int64_t width = gate_up.size(-1) / 2;
    const at::Tensor gate = gate_up.narrow(-1, 0, width), up = gate_up.narrow(-1, width, width);
    const at::Tensor result = at::empty_like(gate_up);
    result.narrow(-1, 0, width).copy_(act_backward(gradients[0] * up, gate, activation));
    result.narrow(-1, width, width).copy_(kernels::act(gate, activation).mul_(gradients[0]));
    return {result, {}};
  }
};

}  // namespace

at::Tensor linear(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias, at::ScalarType dtype) {
  return LinearFunction::apply(x, weight, optional(bias), static_cast<int64_t>(dtype));
}

at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, int64_t divisor, double eps, at::ScalarType dtype) {
  return RmsNormFunction::apply(x, optional(weight), divisor, eps, static_cast<int64_t>(dtype));
}

at::Tensor rope(const at::Tensor& qkv, int64_t heads, const at::Tensor& cos, const at::Tensor& sin,
                bool is_interleaved) {
  return RopeFunction::apply(qkv, heads, cos, sin, is_interleaved);
}

at::Tensor act_mul(const at::Tensor& gate_up, Activation activation) {
  return ActMulFunction::apply(gate_up, static_cast<int64_t>(activation));
}

}  // namespace dynslice::differentiable
