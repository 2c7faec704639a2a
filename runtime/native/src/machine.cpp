#include "machine.hpp"

#include <sched.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <regex>
#include <set>
#include <sstream>
#include <vector>

namespace rf_internal {
namespace {

std::string text_of(const std::string &path) {
  std::ifstream file(path);
  std::stringstream out;
  out << file.rdbuf();
  std::string text = out.str();
  size_t first = text.find_first_not_of(" \t\r\n"), last = text.find_last_not_of(" \t\r\n");
  return first == std::string::npos ? "" : text.substr(first, last - first + 1);
}

std::vector<std::string> split(const std::string &text, char by) {
  std::vector<std::string> parts;
  std::stringstream in(text);
  for (std::string part; std::getline(in, part, by);) parts.push_back(part);
  return parts;
}

std::vector<std::string> words(const std::string &text) {
  std::stringstream in(text);
  std::vector<std::string> found;
  for (std::string word; in >> word;) found.push_back(word);
  return found;
}

std::vector<int> allowed_cpus() {
  std::vector<int> cpus;
  for (int room = CPU_SETSIZE; room <= 1 << 16; room *= 2) {  // of machines with more than 1024 processors
    cpu_set_t *set = CPU_ALLOC(room);
    size_t size = CPU_ALLOC_SIZE(room);
    bool is_known = sched_getaffinity(0, size, set) == 0;
    for (int cpu = 0; is_known && cpu < room; ++cpu)
      if (CPU_ISSET_S(cpu, size, set)) cpus.push_back(cpu);
    CPU_FREE(set);
    if (is_known) return cpus;
  }
  for (int cpu = 0; cpu < sysconf(_SC_NPROCESSORS_ONLN); ++cpu) cpus.push_back(cpu);
  return cpus;
}

bool is_number(const std::string &word) {
  return !word.empty() && word.find_first_not_of("0123456789") == std::string::npos;
}

// Processors' worth of time that a control group gives; 0 for no limit.
double quota(const std::string &folder) {
  auto parts = words(text_of(folder + "/cpu.max"));
  if (parts.empty()) parts = {text_of(folder + "/cpu.cfs_quota_us"), text_of(folder + "/cpu.cfs_period_us")};
  parts.erase(std::remove_if(parts.begin(), parts.end(), [](auto &word) { return !is_number(word); }), parts.end());
  return parts.size() == 2 && std::stod(parts[1]) > 0 ? std::stod(parts[0]) / std::stod(parts[1]) : 0;
}

// Where the hierarchy of the processor's control groups is mounted, and which group is at its top.
bool cpu_mount(const std::string &controllers, std::string &top, std::string &point) {
  for (auto &line : split(text_of("/proc/self/mountinfo"), '\n')) {
    size_t mark = line.find(" - ");
    if (mark == std::string::npos) continue;
    auto fields = words(line.substr(0, mark)), kind = words(line.substr(mark + 3));
    if (fields.size() < 5 || kind.size() < 3) continue;
    auto names = split(kind[2], ',');
    bool fits = controllers.empty() ? kind[0] == "cgroup2"
                                    : kind[0] == "cgroup" && std::find(names.begin(), names.end(), "cpu") != names.end();
    if (fits) return top = fields[3], point = fields[4], true;
  }
  return false;
}

int within_quota(int count) {
  for (auto &line : split(text_of("/proc/self/cgroup"), '\n')) {
    size_t first = line.find(':'), second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    std::string controllers = line.substr(first + 1, second - first - 1), group = line.substr(second + 1), top, point;
    auto names = split(controllers, ',');
    if (!controllers.empty() && std::find(names.begin(), names.end(), "cpu") == names.end()) continue;
    if (!cpu_mount(controllers, top, point)) continue;
    std::string inner = top == "/" ? group : group.rfind(top, 0) == 0 ? group.substr(top.size()) : "";
    if (inner.find("..") != std::string::npos) inner = "";
    while (true) {  // from its own group to the outermost
      if (double share = quota(point + inner)) count = std::min(count, int(std::ceil(share)));
      if (inner.empty() || inner == "/") break;
      inner.erase(inner.rfind('/'));
    }
  }
  return std::max(count, 1);
}

}  // namespace

std::string cpu_features() {
  utsname name{};
  uname(&name);
  static const std::regex kernel_flag("(s?sse|avx|amx|fma|f16c|bmi)\\w*");  // the others change no kernel
  std::vector<std::string> features;
  for (auto &line : split(text_of("/proc/cpuinfo"), '\n')) {
    size_t colon = line.find(':');
    auto key = words(line.substr(0, colon));
    if (colon == std::string::npos || key.size() != 1) continue;
    if (key[0] == "flags") {
      for (auto &flag : words(line.substr(colon + 1)))
        if (std::regex_match(flag, kernel_flag)) features.push_back(flag);
      break;
    }
    if (key[0] == "Features") {
      features = words(line.substr(colon + 1));
      break;
    }
  }
  std::sort(features.begin(), features.end());
  std::string text = name.machine;
  for (auto &feature : features) text += " " + feature;
  return text;
}

int usable_cores() {
  std::set<std::string> cores;
  for (int cpu : allowed_cpus()) {
    std::string name = std::to_string(cpu);
    std::string siblings = text_of("/sys/devices/system/cpu/cpu" + name + "/topology/thread_siblings_list");
    cores.insert(siblings.empty() ? name : siblings);
  }
  return within_quota(int(cores.size()));
}

bool is_confined() { return within_quota(int(allowed_cpus().size())) < sysconf(_SC_NPROCESSORS_ONLN); }

}  // namespace rf_internal
