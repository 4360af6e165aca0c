"""How an op is defined, with its schema, plain-PyTorch default and fake kernel, and called."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from pama_ops import _checks as checks
from pama_ops import reference

NAMESPACE = "pama_ops"
SCHEMAS: dict[str, str] = {}
DEFAULTS: dict[str, Callable[..., Any]] = {}
# Of each op a function that checks its arguments and returns them by name, and one that checks the
# values of those.
REFUSALS: dict[str, tuple[Callable[..., dict[str, Any]], Callable[..., None]]] = {}
_library = torch.library.Library(NAMESPACE, "DEF")


def define(
    name: str,
    schema: str,
    fake: Callable[..., Any],
    check: Callable[..., None] = lambda **_: None,
    values: Callable[..., None] = lambda **_: None,
    default: Callable[..., Any] | None = None,
) -> Any:
    """Define an op whose default rounds the float64 reference to the dtypes the fake declares.

    Given arguments by name, `check` raises for those that the compiled kernels refuse, and `values`
    for values of tensors that a CPU's kernels refuse; a GPU would be waited for. `default` is the
    op's namesake in `reference` if None.
    """
    definition = default or getattr(reference, name)

    def refuse(*args: Any) -> dict[str, Any]:
        given = dict(zip(names, args, strict=False))
        for argument in required:
            checks.tensor(argument, given[argument])
        check(**given)
        return given

    def declare(*args: Any) -> Any:
        return fake(**refuse(*args))

    def rounded(*args: Any) -> Any:
        with torch.no_grad():
            given = refuse(*args)
            declared = fake(**given)
            if all(x.device.type == "cpu" for x in args if isinstance(x, Tensor)):
                values(**given)
            results = definition(*args)
        if results is None:  # the op writes into its arguments
            return None
        if isinstance(results, Tensor):
            return _fitted(results, declared)
        if isinstance(results, list):
            return [d.copy_(r) for r, d in zip(results, declared, strict=True)]
        return tuple(_fitted(r, d) for r, d in zip(results, declared, strict=True))

    SCHEMAS[name], DEFAULTS[name], REFUSALS[name] = schema, rounded, (refuse, values)
    _library.define(name + schema)
    _library.impl(name, rounded, "CompositeExplicitAutograd")
    for backend in "NestedTensorCPU", "NestedTensorCUDA":  # which no alias holds; refused by name
        _library.impl(name, rounded, backend)
    torch.library.register_fake(f"{NAMESPACE}::{name}", declare)
    op = getattr(getattr(torch.ops, NAMESPACE), name).default
    names = [argument.name for argument in op._schema.arguments]
    required = [x.name for x in op._schema.arguments if isinstance(x.type, torch.TensorType)]
    if schema.startswith("(Tensor(a!)"):
        _library.impl(name, _writer(op), "ADInplaceOrView", with_keyset=True)
    return op


def _writer(op: Any) -> Callable[..., None]:
    """The kernel of an op that writes its first argument, above its kernels for devices."""

    def write(keys: Any, written: Tensor | list[Tensor], *args: Any) -> None:
        tensors = _writable(op, written)
        with torch._C._AutoDispatchBelowADInplaceOrView():
            op.redispatch(keys & torch._C._after_ADInplaceOrView_keyset, written, *args)
        torch.autograd.graph.increment_version(tensors)

    return write


def _writable(op: Any, written: Tensor | list[Tensor]) -> list[Tensor]:
    """What has a version to raise, so that autograd finds what it saved to be overwritten."""
    tensors = [written] if isinstance(written, Tensor) else written
    for p, x in enumerate(tensors):
        if x.is_inference():
            at = "" if isinstance(written, Tensor) else f"[{p}]"
            checks.inference_writable(f"{op._schema.arguments[0].name}{at}")
    return [x for x in tensors if not x.is_inference()]


def write(op: Any, written: Tensor | list[Tensor], *args: Any) -> None:
    """Call an op that writes its first argument, but for its kernel above those of devices, through
    which thousands of tensors would go to Python and back."""
    if torch.compiler.is_compiling():
        op(written, *args)
        return
    tensors = _writable(op, written)
    with torch._C._AutoDispatchBelowADInplaceOrView():
        of_lists(op, written, *args)
    torch.autograd.graph.increment_version(tensors)


def call(op: Any, *args: Any, check_values: bool = False) -> Any:
    """Call an op for a public function, which leaves to it what it can refuse by itself.

    Kernels behind torch's stable ABI raise no TypeError, and torch says in its own words what is no
    tensor: what an op refused is asked again of its checks, which name it and say more. Beforehand
    where `check_values` wants values asked too, which a GPU's kernels leave out, and where a
    program is compiled.
    """
    if check_values is not False or torch.compiler.is_compiling():
        refuse, values = REFUSALS[op._opname]
        given = refuse(*args)
        if checks.flag("check_values", check_values):
            values(**given)
        return op(*args)
    try:
        return op(*args)
    except (RuntimeError, TypeError, ValueError) as error:
        refusal = error
    try:
        refuse, values = REFUSALS[op._opname]
        with suppress(RuntimeError):  # what cannot be asked, as out of memory, is as the op said
            values(**refuse(*args))
        raise refusal
    finally:
        del refusal  # its traceback holds this frame, and with it the arguments


def of_lists(op: Any, *args: Any) -> Any:
    """`call` on lists of gradients, which were checked before where a program is compiled."""
    return op(*args) if torch.compiler.is_compiling() else call(op, *args)


def _fitted(result: Tensor, declared: Tensor) -> Tensor:
    """A definition's result in the dtype, and of arrays without tokens the shape, declared."""
    if result.shape != declared.shape and result.numel() == 0:  # rows without tokens were left out
        return declared.zero_()
    return result.to(declared.dtype).contiguous()
