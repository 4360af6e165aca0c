// Arrays of tokens at the border: checked against the first of a call, and taken as views.
#pragma once

#include "core/view.h"
#include "tensors/tensor.h"

namespace pama {

// `x` as [objective, sequence, token]: the last dimension is the token, the one before it the
// sequence unless the arrays are ragged, and the one before that the objective.
inline View view_of(const Tensor& x, bool ragged = false) {
  const auto strides = x.strides();
  const int64_t dims = x.dim(), lead = ragged ? dims - 2 : dims - 3;
  return {const_cast<void*>(x.const_data_ptr()), dtype_of(x), lead >= 0 ? strides[lead] : 0,
          ragged || dims < 2 ? 0 : strides[dims - 2], dims < 1 ? 0 : strides[dims - 1]};
}

inline View view_of(const OptionalTensor& x, bool ragged = false) {
  return x ? view_of(*x, ragged) : View{nullptr, DType::kBool, 0, 0, 0};
}

// A tensor of one number, or none.
inline View one_of(const char* name, const OptionalTensor& x, const Tensor& like) {
  if (!x) return view_of(x);
  if (x->numel() != 1) {
    refuse(std::string(name) + " must hold one number, got " + text_of(x->sizes()));
  }
  dtype_of(*x, name);
  check_device(name, *x, like);
  return view_of(*x);
}

inline View mask_of(const OptionalTensor& mask, Sizes sizes, const Tensor& like,
                    bool ragged = false) {
  if (!mask) return view_of(mask);
  dtype_of(*mask, "mask");
  check_sizes("mask", *mask, sizes, like);
  return view_of(*mask, ragged);
}

// One number for each sequence, [sequences] or [objectives, sequences]. A dimension that a view has
// for tokens is the sequence there.
inline View by_sequence_of(const OptionalTensor& x) {
  View view = view_of(x);
  view.objective = view.sequence;
  view.sequence = view.token;
  view.token = 0;
  return view;
}

// The arrays of tokens of one call, [N, B, T], or [B, T] where they have no objectives; ragged
// without the B. All others must be like the first.
class TokenInputs {
 public:
  Sequences sequences;  // where T is 0 there are none to walk, however large B is
  int64_t rows;         // B
  View first, mask;

  TokenInputs(const char* name, const Tensor& x, const OptionalTensor& mask,
              const OptionalTensor& cu_seqlens, bool objectives = true)
      : like_(x), objectives_(objectives), ragged_(cu_seqlens.has_value()) {
    check_floating(name, x);
    const Sizes sizes = x.sizes();
    if (x.dim() != (objectives ? 3 : 2) - (ragged_ ? 1 : 0) || (objectives && sizes[0] == 0)) {
      refuse(std::string(name) + " must have the shape [" + (objectives ? "N, " : "") +
             (ragged_ ? "total]" : "B, T]") + (objectives ? " with N >= 1" : "") + ", got " +
             text_of(sizes));
    }
    this->mask = mask_of(mask, sizes_of_objective(), x, ragged_);
    first = view(x);
    const int64_t n = objectives ? sizes[0] : 1, last = sizes[x.dim() - 1];
    if (ragged_) {
      check_offsets(*cu_seqlens);
      rows = cu_seqlens->size(0) - 1;
      sequences = {n,
                   rows,
                   last,
                   cu_seqlens->const_data_ptr(),
                   cu_seqlens->scalar_type() == ScalarType::Long,
                   last,
                   cu_seqlens->stride(0)};
    } else {
      rows = sizes[x.dim() - 2];
      sequences = {n, last == 0 ? 0 : rows, last, nullptr, false, last, 0};
    }
  }

  View view(const Tensor& x) const { return view_of(x, ragged_); }

  // Of an array like the first.
  View alike(const char* name, const OptionalTensor& x) const {
    return checked(name, x, like_.sizes());
  }
  // Of one for all objectives.
  View of_objective(const char* name, const OptionalTensor& x) const {
    return checked(name, x, sizes_of_objective());
  }
  // Of one number for each sequence of each objective.
  View of_sequence(const char* name, const OptionalTensor& x) const {
    if (x) check_reals(name, *x, {sequences.objectives, rows}, like_);
    return by_sequence_of(x);
  }

  // The shape of one objective's tokens.
  Sizes sizes_of_objective() const {
    const Sizes sizes = like_.sizes();
    return objectives_ ? Sizes(sizes.data() + 1, sizes.size() - 1) : sizes;
  }

 private:
  View checked(const char* name, const OptionalTensor& x, Sizes sizes) const {
    if (x) check_reals(name, *x, sizes, like_);
    return view_of(x, ragged_);
  }

  void check_offsets(const Tensor& cu_seqlens) const {
    const ScalarType dtype = cu_seqlens.scalar_type();
    if (dtype != ScalarType::Int && dtype != ScalarType::Long) {
      refuse("cu_seqlens must be int32 or int64, got " + text_of(dtype));
    }
    if (cu_seqlens.dim() != 1 || cu_seqlens.size(0) == 0) {
      refuse("cu_seqlens must have the shape [B + 1], got " + text_of(cu_seqlens.sizes()));
    }
    check_device("cu_seqlens", cu_seqlens, like_);
  }

  const Tensor& like_;
  bool objectives_, ragged_;
};

// Arrays of one or two dimensions, of which the last is walked.
inline void check_rows(const char* name, const Tensor& x) {
  check_floating(name, x);
  if (x.dim() != 1 && x.dim() != 2) {
    refuse(std::string(name) + " must have 1 or 2 dimensions, got " + text_of(x.sizes()));
  }
}

inline int64_t rows_in(const Tensor& x) { return x.dim() > 1 ? x.size(0) : 1; }

}  // namespace pama
