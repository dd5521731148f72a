// The types of a GGUF file's metadata values: the numbers that precede them in the file.
#pragma once

#include <cstdint>

namespace dynslice {

enum GgufValueType : uint32_t {
  kUint8,
  kInt8,
  kUint16,
  kInt16,
  kUint32,
  kInt32,
  kFloat32,
  kBool,
  kString,
  kArray,
  kUint64,
  kInt64,
  kFloat64,
};

}  // namespace dynslice
