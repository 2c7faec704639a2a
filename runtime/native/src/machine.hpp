// What this process may use of the machine, and what compiled code depends on; see runtime/backends/host/machine.py.
#pragma once

#include <string>

namespace rf_internal {

std::string cpu_features();  // machine and instruction sets: equal texts run and pack alike
int usable_cores();          // by affinity and control groups, processors that share a core once
bool is_confined();          // whether this process may use fewer processors than the machine has

}  // namespace rf_internal
