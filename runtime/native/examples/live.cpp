// Keeps drawing while somebody types: every line is a new prompt, which gives up the drawing that runs. What there is of
// a picture after each step is written as a preview.
//
//   rf_live BUNDLE picture.png
#include <rf.hpp>

#include <atomic>
#include <condition_variable>
#include <iostream>
#include <mutex>
#include <optional>
#include <thread>

#include "png.h"

namespace {

class Wanted {  // the newest prompt: who draws waits for it, who types replaces it
 public:
  void replace(std::string prompt) {
    std::lock_guard<std::mutex> lock(mutex_);
    prompt_ = std::move(prompt), is_new_ = true;
    changed_.notify_one();
  }
  void end() {  // the last prompt is still drawn
    std::lock_guard<std::mutex> lock(mutex_);
    has_ended_ = true;
    changed_.notify_one();
  }
  bool is_newer() const { return is_new_; }
  std::optional<std::string> next() {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [&] { return is_new_ || has_ended_; });
    if (!is_new_.exchange(false)) return std::nullopt;
    return prompt_;
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::string prompt_;
  bool has_ended_ = false;
  std::atomic<bool> is_new_{false};
};

void draw_all(const rf::Pipeline &pipeline, Wanted &wanted, const std::string &path) {
  uint64_t seed = 0;
  while (auto prompt = wanted.next()) {
    rf::DrawOptions options;
    options.seed = seed++;
    auto on_event = [&](const rf_event &event) {
      if (event.kind == RF_STEP) {
        std::vector<uint8_t> rgb(3 * size_t(event.height) * size_t(event.width));
        rf_to_rgb(event.x_pred, event.height, event.width, rgb.data());
        write_png(path.c_str(), rgb.data(), uint32_t(event.height), uint32_t(event.width));
      }
      return !wanted.is_newer();
    };
    try {
      auto picture = pipeline.draw(*prompt, options, on_event);
      write_png(path.c_str(), picture.rgb.data(), uint32_t(picture.height), uint32_t(picture.width));
      std::cout << "drawn: " << *prompt << std::endl;
    } catch (const rf::Failure &failure) {
      if (failure.status == RF_CANCELLED) std::cout << "given up: " << *prompt << std::endl;
      else std::cout << failure.what() << std::endl;
    }
  }
}

}  // namespace

int main(int argc, char **argv) {
  if (argc != 3) return std::cerr << "usage: rf_live BUNDLE PICTURE.png\n", 2;
  try {
    rf::Pipeline pipeline(argv[1]);
    Wanted wanted;
    std::thread drawing(draw_all, std::cref(pipeline), std::ref(wanted), std::string(argv[2]));
    for (std::string line; std::getline(std::cin, line);) wanted.replace(line);
    wanted.end();
    drawing.join();
    return 0;
  } catch (const rf::Failure &failure) {
    return std::cerr << failure.what() << "\n", 1;
  }
}
