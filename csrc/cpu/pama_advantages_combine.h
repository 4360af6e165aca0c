// The problems of a batch on the CPU: the preference among the objectives that count in each.
#pragma once

#include <map>

#include "core/weightings/pama_weights.h"
#include "cpu/pama_advantages.h"

namespace pama {

// The objectives that count in one problem: those that are active, with their preferences.
struct Preference {
  std::vector<double> raw;       // 0: dropped
  std::vector<int64_t> used;     // the others
  std::vector<double> relative;  // of the used, to the largest
  std::vector<double> offset;    // of the used, to their sum; 0 for a uniform preference
  bool uniform = true;

  explicit Preference(std::vector<double> numbers) : raw(std::move(numbers)) {
    const auto n = static_cast<int64_t>(raw.size());
    std::vector<double> all(n);
    relative_preference(SerialTeam{}, static_cast<int>(n), raw.data(), DBL_MIN, all.data());
    double total = 0;
    for (int64_t i = 0; i < n; ++i) {
      if (!(all[i] > 0)) continue;  // all are NaN where nothing is both active and preferred
      used.push_back(i);
      relative.push_back(all[i]);
      total += all[i];
      uniform &= all[i] == 1;
    }
    for (const double p : relative) offset.push_back(uniform ? 0.0 : p / total);
  }
};

// The preference of each sequence: as a rule few differ, and one problem is set up for all alike.
struct Preferences {
  std::vector<Preference> distinct;
  std::vector<size_t> of;  // by sequence; empty if all share the one
  bool uniform = true;     // of those in play each

  explicit Preferences(const PamaInputs& batch) {
    const int64_t n = batch.sequences.objectives;
    const auto column = [&](int64_t b) {
      std::vector<double> raw(n);
      for (int64_t i = 0; i < n; ++i) {
        raw[i] = batch.statistics[i] != 0 ? preferred(batch.preference, i, b) : 0;
      }
      return raw;
    };
    if (!batch.by_sequence) {
      add(column(0));
      return;
    }
    std::map<std::vector<double>, size_t> found;
    of.reserve(batch.sequences.count);
    for (int64_t b = 0; b < batch.sequences.count; ++b) {
      std::vector<double> raw = column(b);
      const auto [at, is_new] = found.try_emplace(raw, distinct.size());
      of.push_back(at->second);
      if (is_new) add(std::move(raw));
    }
  }

  void add(std::vector<double> raw) {
    distinct.emplace_back(std::move(raw));
    uniform &= distinct.back().uniform;
  }

  size_t which(int64_t b) const { return of.empty() ? 0 : of[b]; }
  const Preference& at(int64_t b) const { return distinct[which(b)]; }
};

struct Combine : PamaCombination {
  const Preferences& preferences;
};

void combine_by_token(const Combine& job);  // by weights at each token

}  // namespace pama
