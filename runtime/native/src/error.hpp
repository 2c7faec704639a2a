// The one exception of the library, with the status that it becomes at the border. Knows nothing of what can go wrong.
#pragma once

#include <stdexcept>
#include <string>

#include "rf.h"

namespace rf_internal {

struct Error : std::runtime_error {
  rf_status status;
  explicit Error(const std::string &message, rf_status status = RF_INPUT)
      : std::runtime_error(shortened(message)), status(status) {}

 private:
  static std::string shortened(const std::string &message) {  // names and values of a hostile file would fill a log
    constexpr size_t longest = 2000;
    if (message.size() <= longest) return message;
    return message.substr(0, longest / 2) + " ... " + message.substr(message.size() - longest / 4);
  }
};

}  // namespace rf_internal
