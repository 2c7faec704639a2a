#include "session.hpp"

#include <algorithm>
#include <cstring>
#include <new>

namespace rf_internal {
namespace {

void narrow(const int64_t *from, uint8_t *to, size_t count) {
  for (size_t i = 0; i < count; ++i) {
    auto value = int32_t(from[i]);
    std::memcpy(to + i * sizeof value, &value, sizeof value);
  }
}

void widen(const uint8_t *from, int64_t *to, size_t count) {
  for (size_t i = 0; i < count; ++i) {
    int32_t value;
    std::memcpy(&value, from + i * sizeof value, sizeof value);
    to[i] = value;
  }
}

}  // namespace

size_t num_bytes(Element element) { return element == Element::int64 ? 8 : element == Element::float16 ? 2 : 4; }

size_t num_elements(const std::vector<int64_t> &shape) {
  size_t product = 1;
  for (int64_t size : shape)
    if (size < 0 || __builtin_mul_overflow(product, size_t(size), &product) || product > size_t(1) << 46) throw std::bad_alloc();
  return product;
}

Tensor tensor(const float *data, std::vector<int64_t> shape) {
  return {const_cast<float *>(data), num_elements(shape) * sizeof(float), Element::float32, std::move(shape)};
}

Tensor tensor(const int64_t *data, std::vector<int64_t> shape) {
  return {const_cast<int64_t *>(data), num_elements(shape) * sizeof(int64_t), Element::int64, std::move(shape)};
}

Tensor kv_tensor(const void *data, size_t bytes_each, std::vector<int64_t> shape) {
  return {const_cast<void *>(data), num_elements(shape) * bytes_each, bytes_each == 2 ? Element::float16 : Element::float32,
          std::move(shape)};
}

Binding::Binding(const Session &session) : session_(session), device_(session.device()), run_(session.prepare()) {}

void Binding::add(std::vector<Array> &arrays, const std::string &name, const Tensor &array, bool is_wanted) {
  bool is_narrow = array.type == Element::int64 && session_.is_narrow(name);
  size_t at = arrays.empty() ? 0 : arrays.back().at + arrays.back().num_bytes, step = device_.alignment();
  arrays.push_back({name, array, is_narrow, is_wanted, array.num_bytes / (is_narrow ? 2 : 1), (at + step - 1) / step * step});
}

void Binding::input(const std::string &name, const Tensor &array) {
  if (device_.is_host()) run_->input(name, array);
  else add(inputs_, name, array, true);
}

void Binding::output(const std::string &name, const Tensor &array, bool is_wanted) {
  if (device_.is_host()) run_->output(name, array);
  else add(outputs_, name, array, is_wanted);
}

void Binding::run() {
  if (!device_.is_host()) upload();
  run_->start();
  if (!device_.is_host()) download();
}

// All inputs lie in one block, and all outputs behind them, so that each goes in one copy.
void Binding::place() {
  auto size = [](const std::vector<Array> &arrays) { return arrays.empty() ? 0 : arrays.back().at + arrays.back().num_bytes; };
  size_t step = device_.alignment(), sent = (size(inputs_) + step - 1) / step * step, received = size(outputs_);
  block_ = Memory(device_, sent + received);
  sent_.resize(sent), received_.resize(received);
  auto bind = [&](const Array &array, size_t from) {
    Tensor tensor = array.host;
    tensor.data = block_.data() + from + array.at, tensor.num_bytes = array.num_bytes;
    if (array.is_narrow) tensor.type = Element::int32;
    return tensor;
  };
  for (auto &array : inputs_) run_->input(array.name, bind(array, 0));
  for (auto &array : outputs_) run_->output(array.name, bind(array, sent));
}

void Binding::upload() {
  bool is_first = !block_.data();
  if (is_first) place();
  size_t first = sent_.size(), end = 0;
  std::vector<uint8_t> narrowed;
  for (auto &array : inputs_) {
    auto *now = static_cast<const uint8_t *>(array.host.data);
    if (array.is_narrow) {
      narrowed.resize(array.num_bytes);
      narrow(static_cast<const int64_t *>(array.host.data), narrowed.data(), array.num_bytes / sizeof(int32_t));
      now = narrowed.data();
    }
    if (!is_first && std::memcmp(sent_.data() + array.at, now, array.num_bytes) == 0) continue;
    std::memcpy(sent_.data() + array.at, now, array.num_bytes);
    first = std::min(first, array.at), end = array.at + array.num_bytes;
  }
  if (first < end) device_.upload(block_.data() + first, sent_.data() + first, end - first);
}

void Binding::download() {
  size_t first = received_.size(), end = 0;
  for (auto &array : outputs_)
    if (array.is_wanted) first = std::min(first, array.at), end = array.at + array.num_bytes;
  if (first >= end) return;
  device_.download(received_.data() + first, block_.data() + sent_.size() + first, end - first);
  device_.wait();
  for (auto &array : outputs_) {
    if (!array.is_wanted) continue;
    if (array.is_narrow) widen(received_.data() + array.at, static_cast<int64_t *>(array.host.data), array.num_bytes / sizeof(int32_t));
    else std::memcpy(array.host.data, received_.data() + array.at, array.num_bytes);
  }
}

}  // namespace rf_internal
