// Small problems on the CPU: a thread takes a range of them, and each is solved by one thread, so
// that results do not depend on the number of threads.
#include "tensors/weights.h"

#include <atomic>
#include <cmath>
#include <memory>

#include "core/weightings/list.h"
#include "core/weightings/pama_weights.h"
#include "cpu/checks.h"

namespace pama {
namespace {

// Calls body(first, last) on ranges of problems, each range worth a thread's while: a problem of n
// rows takes about 16 n² ns. A single range costs no dispatch.
template <class Body>
void for_problems(int64_t count, int64_t n, const Body& body) {
  const int64_t grain = 1250 / (n * n) + 1;
  if (count <= grain) {
    body(0, count);
  } else {
    torch::stable::parallel_for(0, count, grain, body);
  }
}

// The norms that a Gram matrix's entries are bounded by. False if a square is negative.
template <class At>
bool bounding_norms(const At& at, int64_t n, DType dtype, double* norm) {
  const double least = precision_of(dtype).least;
  double largest = 0;
  for (int64_t i = 0; i < n; ++i) largest = fmax(largest, std::fabs(at(i, i)));
  bool positive = true;
  for (int64_t i = 0; i < n; ++i) {
    norm[i] = longest_norm(at(i, i), largest, least);
    positive &= !(at(i, i) < -norm[i] * norm[i]);
  }
  return positive;
}

// The dtype is told once a matrix, not once an element. Returns whether the matrix is a Gram matrix
// to rounding: symmetric, and no entry beyond the product of its norms. `norm` is room.
bool load_gram(const Stack& gram, int64_t b, int64_t n, double* to, double* norm) {
  with_real(gram.dtype, [&](auto element) {
    const auto* from = static_cast<const decltype(element)*>(gram.data) + gram.offset(b);
    for (int64_t i = 0; i < n; ++i) {
      const auto* row = from + i * gram.row;
      for (int64_t j = 0; j < n; ++j) to[i * n + j] = number(row[j * gram.column]);
    }
  });
  const auto at = [&](int64_t i, int64_t j) { return to[i * n + j]; };
  bool good = bounding_norms(at, n, gram.dtype, norm);
  const double unit = precision_of(gram.dtype).roundoff;
  for (int64_t i = 1; i < n; ++i) {
    for (int64_t j = 0; j < i; ++j) {
      double &lower = to[i * n + j], &upper = to[j * n + i];
      good &= bounded_by_norms(lower, norm[i], norm[j]);
      if (lower == upper) continue;
      good &= symmetric_to_rounding(lower, upper, at(i, i), at(j, j), unit);
      lower = upper = 0.5 * lower + 0.5 * upper;
    }
  }
  return good;
}

// What is wrong with a matrix that load_gram found bad.
std::string fault_of(const Stack& gram, int64_t b, int64_t n) {
  const int64_t start = gram.offset(b);
  const auto at = [&](int64_t i, int64_t j) {
    return load(gram, start + i * gram.row + j * gram.column);
  };
  const auto entry = [&](int64_t i, int64_t j) {
    return text_of(at(i, j)) + " at [" + std::to_string(i) + ", " + std::to_string(j) + "]";
  };
  const double unit = precision_of(gram.dtype).roundoff;
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j < i; ++j) {
      if (symmetric_to_rounding(at(i, j), at(j, i), at(i, i), at(j, j), unit)) continue;
      return "symmetric to rounding, got " + entry(i, j) + " and " + entry(j, i);
    }
  }
  std::vector<double> norm(n);
  bounding_norms(at, n, gram.dtype, norm.data());
  std::string fault = "inner products, none beyond the root of its two squares, got ";
  for (int64_t i = 0; i < n; ++i) {
    if (at(i, i) < -norm[i] * norm[i]) return fault + entry(i, i);
    for (int64_t j = 0; j < i; ++j) {
      if (bounded_by_norms(at(i, j), norm[i], norm[j])) continue;
      return fault + entry(i, j) + " of squares " + text_of(at(i, i)) + " and " + text_of(at(j, j));
    }
  }
  return fault;
}

void check_preferences(const ProblemStack& problems) {
  const Stack& each = problems.vector;
  if (!each.data) return;
  const auto check = [&](int64_t start) {
    check_preference([&](int64_t i) { return load(each, start + i * each.column); }, problems.n);
  };
  const bool shared = std::all_of(each.strides, each.strides + each.lead,
                                  [](int64_t stride) { return stride == 0; });
  if (shared) return check(0);
  for (int64_t b = 0; b < problems.count; ++b) check(each.offset(b));
}

template <template <class> class Solver>
void run(const Tensor&, const ProblemStack& problems) {
  using Method = Solver<SerialTeam>;
  if (Method::kTakes == Takes::kPreference) check_preferences(problems);
  const Stack& matrices = problems.input;
  const int64_t n = problems.n, outputs = Method::kScalar ? 1 : n;
  std::atomic<int64_t> bad{problems.count};
  for_problems(problems.count, n, [&](int64_t first, int64_t last) {
    const std::unique_ptr<double[]> memory(new double[memory_of<Method>(n)]);
    const auto problem = problem_in<Method, SerialTeam>(memory.get(), problems);
    for (int64_t b = first; b < last; ++b) {
      if (!load_gram(matrices, b, n, problem.gram, problem.out)) {
        int64_t least = bad;
        while (b < least && !bad.compare_exchange_weak(least, b)) {
        }
        return;
      }
      load_vector(SerialTeam{}, problems.vector, b, Method::vector(n), problem.gram + n * n);
      Method(problem).solve();
      for (int64_t i = 0; i < outputs; ++i) store(problems.out, b * outputs + i, problem.out[i]);
    }
  });
  if (bad < problems.count) {
    refuse("gram must be " + fault_of(matrices, bad, n) +
           (matrices.lead > 0 ? " of matrix " + std::to_string(bad) : ""));
  }
}

void run_pama_weights(const Tensor&, const ProblemStack& problems) {
  check_preferences(problems);
  const int64_t n = problems.n;
  for_problems(problems.count, n, [&](int64_t first, int64_t last) {
    std::vector<double> values(n), preference(n), weights(n),
        reals(PamaWeights<SerialTeam>::reals(n));
    PamaWeights<SerialTeam> solver({}, problems.n, {reals.data(), nullptr});
    load_vector(SerialTeam{}, problems.vector, 0, n, preference.data());
    solver.prefer(problems.vector.data ? preference.data() : nullptr);
    for (int64_t b = first; b < last; ++b) {
      load_vector(SerialTeam{}, problems.input, b, n, values.data());
      store(problems.optimum, b, solver.solve(values.data(), weights.data()));
      for (int64_t i = 0; i < n; ++i) store(problems.out, b * n + i, weights[i]);
    }
  });
}

template <template <class> class Solver>
constexpr auto op = &solve<Solver<SerialTeam>, run<Solver>>;

STABLE_TORCH_LIBRARY_IMPL(pama_ops, CPU, m) {
  PAMA_SOLVERS(PAMA_REGISTER_SOLVER)
  m.impl("pama_weights", TORCH_BOX(&pama_weights<run_pama_weights>));
}

}  // namespace
}  // namespace pama
