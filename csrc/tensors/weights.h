// The ops that solve a small problem for each matrix, or each vector, of a stack: the list of
// solvers, and `pama_weights`.
#pragma once

#include <algorithm>
#include <cfloat>

#include "core/weightings/gram_problem.h"
#include "tensors/matrix_stacks.h"

namespace pama {

struct ProblemStack {
  static constexpr int kMaxOptions = 4;

  Stack input, vector, out;
  Stack optimum{};
  int64_t count;
  int n;
  double rtol = 0;
  double options[kMaxOptions] = {};
};

// What a problem is solved in, in doubles: the matrix, the vector, the result, and what the solver
// asks for.
template <class Solver>
PAMA_HD constexpr int64_t memory_of(int64_t n) {
  return n * n + Solver::vector(n) + n + Solver::reals(n) + (Solver::integers(n) + 1) / 2;
}

// One of a stack's problems in that memory, where its matrix and its vector are yet to be loaded.
template <class Solver, class Team>
PAMA_HD GramProblem<Team> problem_in(double* memory, const ProblemStack& stack) {
  const int n = stack.n;
  double *vector = memory + n * n, *out = vector + Solver::vector(n), *reals = out + n;
  return {.team = {},
          .n = n,
          .gram = memory,
          .vector = stack.vector.data ? vector : nullptr,
          .rtol = stack.rtol,
          .options = stack.options,
          .out = out,
          .workspace = {reals, reinterpret_cast<int*>(reals + Solver::reals(n))}};
}

// A preference, or what an op takes in its place, for each matrix or for all.
inline void check_vector(const char* name, const Tensor& x, int64_t size, const Tensor& gram) {
  const Sizes sizes = x.sizes(), lead(gram.sizes().data(), gram.dim() - 2);
  const bool scalar = size == 1 && sizes.size() == 0;
  const bool alone = sizes.size() == 1 && sizes[0] == size;
  const bool each = sizes.size() == lead.size() + 1 && sizes[lead.size()] == size &&
                    same_sizes(Sizes(sizes.data(), lead.size()), lead);
  if (!scalar && !alone && !each) {
    refuse(std::string(name) + " must have the shape [" + std::to_string(size) + "], or that for " +
           "each matrix, got " + text_of(sizes));
  }
  check_device(name, x, gram);
}

// What `Solver` (core/weightings/list.h) asks for.
template <class Solver>
void check_problem(const Tensor& gram, const std::optional<Tensor>& vector,
                   const std::vector<double>& options, const std::optional<double>& rtol) {
  check_floating("gram", gram);
  const int64_t dims = gram.dim();
  if (dims < 2 || gram.size(dims - 1) != gram.size(dims - 2) || gram.size(dims - 1) == 0) {
    refuse("gram must have the shape [..., n, n] with n >= 1, got " + text_of(gram.sizes()));
  }
  if (static_cast<int64_t>(options.size()) != Solver::kOptions) {
    refuse("options must hold as many numbers as the op takes, " +
           std::to_string(Solver::kOptions) + ", got " + std::to_string(options.size()));
  }
  if (rtol && !(*rtol >= 0 && *rtol <= DBL_MAX)) {
    refuse("rtol must be nonnegative and finite, got " + text_of(*rtol));
  }
  if (!vector) {
    if (Solver::kTakes == Takes::kVector) refuse("the op takes a vector beside gram, got None");
    return;
  }
  if (Solver::kTakes == Takes::kNothing) {
    refuse("the op takes no vector beside gram, got a tensor");
  }
  const bool preferred = Solver::kTakes == Takes::kPreference;  // [n], or one for each matrix
  const char* name = preferred ? "preference" : "the vector beside gram";
  if (preferred || vector->scalar_type() != ScalarType::Long) check_floating(name, *vector);
  const int64_t size = Solver::vector(gram.size(dims - 1));
  if (preferred && vector->dim() <= 1) return check_sizes(name, *vector, {size}, gram);
  check_vector(name, *vector, size, gram);
}

template <class Solver, void (*Run)(const Tensor& on, const ProblemStack&)>
Tensor solve(const Tensor& gram, const std::optional<Tensor>& vector,
             const std::vector<double>& options, const std::optional<double>& rtol) {
  check_problem<Solver>(gram, vector, options, rtol);
  static_assert(Solver::kOptions <= ProblemStack::kMaxOptions);
  std::vector<int64_t> shape(gram.sizes().begin(), gram.sizes().end() - 2);
  const int64_t n = gram.size(gram.dim() - 1);
  if (!Solver::kScalar) shape.push_back(n);
  Tensor out = allocate(gram, shape, gram.scalar_type());
  ProblemStack problems{.input = stack_of(gram, 2, gram, 2),
                        .vector = stack_of(vector, 1, gram, 2),
                        .out = result_of(out),
                        .count = gram.numel() / (n * n),
                        .n = static_cast<int>(n),
                        .rtol = rtol.value_or(2 * precision_of(dtype_of(gram)).roundoff)};
  std::copy(options.begin(), options.end(), problems.options);
  Run(gram, problems);
  return out;
}

// For PAMA_SOLVERS: registers a back end's `op<Solver>` with the library m.
#define PAMA_REGISTER_SOLVER(name, Solver) m.impl(#name, TORCH_BOX(op<Solver>));

template <void (*Run)(const Tensor& on, const ProblemStack&)>
std::tuple<Tensor, Tensor> pama_weights(const Tensor& values,
                                        const std::optional<Tensor>& preference) {
  check_floating("values", values);
  const Sizes sizes = values.sizes();
  if (sizes.size() == 0 || sizes[sizes.size() - 1] == 0) {
    refuse("values must have the shape [..., n] with n >= 1, got " + text_of(sizes));
  }
  const int64_t n = sizes[sizes.size() - 1];
  if (preference) check_reals("preference", *preference, {n}, values);
  Tensor weights = allocate(values, sizes, values.scalar_type());
  Tensor optimum = allocate(values, Sizes(sizes.data(), sizes.size() - 1), values.scalar_type());
  Run(values, {.input = stack_of(values, 1, values, 1),
               .vector = stack_of(preference, 1, values, 1),
               .out = result_of(weights),
               .optimum = result_of(optimum),
               .count = values.numel() / n,
               .n = static_cast<int>(n)});
  return {weights, optimum};
}

}  // namespace pama
