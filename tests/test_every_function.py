"""What holds of every public function alike: what it makes follows its arguments, numbers are
numbers, and what it cannot take it refuses by name.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch
from public_calls import PublicCall, copied, public_calls, tensors_in
from torch import Tensor
from torch.utils._pytree import tree_map_only

import pama_ops as po

CALLS = public_calls()


@pytest.fixture(params=CALLS)
def call(request, backend) -> PublicCall:
    if backend.name == "cuda":
        pytest.skip("the arguments lie on a CPU")
    found = CALLS[request.param]
    return replace(found, options=copied(found.options))


def test_every_public_function_is_called():
    called = {name.split(" ")[0].rstrip(",") for name in CALLS}
    assert called == {name for name in po.__all__ if name[0].islower()}


def same(got: list[Tensor], want: list[Tensor]) -> bool:
    alike = [x.dtype == y.dtype and x.device == y.device for x, y in zip(got, want, strict=True)]
    return all(alike) and all(torch.equal(x, y) for x, y in zip(got, want, strict=True))


def options_of(name: str) -> dict[str, object]:
    """The keyword-only options of a public function, with their defaults."""
    function = getattr(po, name.split(" ")[0].rstrip(","))
    parameters = inspect.signature(function).parameters.values()
    return {x.name: x.default for x in parameters if x.kind == x.KEYWORD_ONLY}


def defaulting_to(kind: type, name: str) -> set[str]:
    """The options whose defaults are of this kind: flags, numbers or words."""
    return {option for option, default in options_of(name).items() if isinstance(default, kind)}


@contextlib.contextmanager
def changed(default: torch.dtype | str) -> Iterator[None]:
    """With another default dtype, or the default device meta, set as one or the other can."""
    if default == "with device":
        with torch.device("meta"):
            yield
        return
    dtype = torch.get_default_dtype()
    if isinstance(default, torch.dtype):
        torch.set_default_dtype(default)
    else:
        torch.set_default_device("meta")
    try:
        yield
    finally:
        torch.set_default_dtype(dtype)
        torch.set_default_device(None)


DEFAULTS = ["with device", "set device", torch.float16, torch.float64]


def test_defaults_of_torch_change_no_bit(call):
    """Tensors that a function makes follow its arguments."""
    flags = options_of(call.name).keys() & {"check_values", "check_finite"}
    for options in [{}, *({flag: True} for flag in flags)]:
        want = call(**options)
        for default in DEFAULTS:
            with changed(default):
                got = call(**options)
            assert same(got, want), (default, options)


def test_defaults_of_torch_change_no_gradient(call):
    def slopes() -> list[Tensor]:
        changes = {
            name: [x.detach().requires_grad_() for x in value]
            if isinstance(value, list)
            else value.detach().requires_grad_()
            for name, value in call.options.items()
            if name in call.differentiable
        }
        out = call(**changes)[0]
        total = (out * torch.ones_like(out)).sum()
        return list(torch.autograd.grad(total, tensors_in(changes)))

    if not call.differentiable:
        pytest.skip("not differentiable")
    want = slopes()
    for default in DEFAULTS:
        with changed(default):
            assert same(slopes(), want), default


# --- tensors made under inference mode -----------------------------------------------------------


def test_constants_made_under_inference_mode_are_taken(call):
    """With a gradient of the others, the same bits and the same gradient as of plain tensors."""
    if call.options.keys() == {"losses", "parameters"}:
        pytest.skip("takes no constants")
    with torch.inference_mode():
        constants = copied(call.options)
    for name in call.differentiable or (None,):
        results = []
        for others in (call.options, constants):
            changes, leaves = dict(others), []
            if name is not None:
                mine = call.options[name]
                leaves = [(mine[0] if isinstance(mine, list) else mine).detach().requires_grad_()]
                # Of a list the first requires a gradient, the others are constants.
                changes[name] = (
                    [*leaves, *others[name][1:]] if isinstance(mine, list) else leaves[0]
                )
            got = call(**changes)
            if leaves:
                got += torch.autograd.grad(got[0].sum(), leaves)
            results.append([x.detach() for x in got])
        assert same(*results)


def test_what_was_made_under_inference_mode_may_change_before_backward():
    """Nothing counts its versions, so that a copy is what is differentiated."""
    with torch.inference_mode():
        advantages = torch.ones(1, 3)
    logp = torch.zeros(1, 3, requires_grad=True)
    loss = po.ppo_loss(logp, torch.zeros(1, 3), advantages).loss
    with torch.inference_mode():
        advantages.fill_(torch.nan)
    loss.backward()
    torch.testing.assert_close(logp.grad, torch.full((1, 3), -1 / 3))


# --- layouts -------------------------------------------------------------------------------------

LAYOUTS = {
    "sparse": lambda x: x.to_sparse(),
    "csr": lambda x: x.to_sparse_csr() if x.dim() == 2 else x.to_sparse(),
    "nested": lambda x: torch.nested.nested_tensor([x[0], x[0]] if x.dim() else [x, x]),
    "jagged": lambda x: torch.nested.nested_tensor(
        [x.reshape(-1), x.reshape(-1)], layout=torch.jagged
    ),
    "mkldnn": lambda x: x.detach().float().to_mkldnn() if x.dim() else x.to_sparse(),
}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_that_are_not_strided_are_refused_by_name(call, backend, layout):
    for name in call.tensors():
        other = LAYOUTS[layout](call.options[name])
        with pytest.raises(TypeError, match=rf"^{name} must be a dense tensor, got"):
            call(**{name: other})
    if "grads" not in call.options:
        return
    grads = call.options["grads"]
    first = tensors_in(grads)[0]
    for others in (
        tree_map_only(Tensor, lambda x: LAYOUTS[layout](x) if x is first else x, grads),
        tree_map_only(Tensor, LAYOUTS[layout], grads),
    ):
        with pytest.raises((TypeError, ValueError), match=r"^grads\[0\](\[0\])? must be"):
            call(grads=others)
    if call.function is po.combine:
        out = [torch.empty_like(x) for x in tensors_in(grads[0])]
        with pytest.raises(TypeError, match=r"^out\[0\] must be a dense tensor"):
            call(out=[LAYOUTS[layout](x) for x in out])


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_losses_that_are_not_strided_are_refused_by_name(layout):
    x = torch.ones(2, requires_grad=True)
    for losses in (LAYOUTS[layout](torch.ones(2)), [LAYOUTS[layout](torch.ones(1, 1)), x.sum()]):
        with pytest.raises(TypeError, match=r"^losses(\[0\])? must be a dense tensor"):
            po.pareto_backward(losses, [x])
    assert x.grad is None


def test_outputs_that_are_no_tensors_are_refused_by_name():
    g = [torch.ones(2), torch.ones(2)]
    for wrong in (3, "ab", {"a": g[0]}, object(), np.ones(1), ["ab"], [None]):
        with pytest.raises(TypeError, match=r"^out(\[0\])? must be a"):
            po.combine(g, torch.ones(2), out=wrong)


# --- what is no tensor, or one of another kind ----------------------------------------------------


def strange_kinds(like: Tensor) -> dict[str, object]:
    """What comes in place of a tensor, of the right shape where it has one."""
    kinds: dict[str, object] = {
        "array": like.numpy(), "list": like.tolist(), "string": "x", "object": object(),
        "complex": like.to(torch.complex64), "float8": like.float().to(torch.float8_e5m2),
        "longer": torch.cat([like.reshape(-1), like.reshape(-1), like.reshape(-1)[:1]]),
        "with one dimension more": like[None, None],
    }  # fmt: skip
    return kinds if like.dim() else kinds | {"list": [1.0], "array": "array"}


@pytest.mark.parametrize("name", CALLS)
def test_what_is_no_such_tensor_is_refused_by_name(name):
    call = CALLS[name]
    for option in call.tensors():
        first = next(iter(call.options)) == option
        kinds = strange_kinds(call.options[option])
        if not first:
            kinds["elsewhere"] = call.options[option].to("meta")
        if option in ("gram", "normalizer") or call.function is po.pama_weights:
            del kinds["with one dimension more"]  # leading dimensions, or still one number
        if option == "preference" and call.options[option].dim() == 1:
            del kinds["array"], kinds["list"]
        for kind, x in kinds.items():
            # A first argument of another size is what the others are compared to.
            names = f"({'|'.join(call.options)})" if first and kind == "longer" else option
            with pytest.raises((TypeError, ValueError), match=rf"^{names}\b.* must"):
                call(**{option: x})


@pytest.mark.parametrize("name", [name for name in CALLS if "cu_seqlens" in options_of(name)])
def test_offsets_that_are_none_are_refused_by_name(name):
    call = CALLS[name]
    if "cu_seqlens" not in call.options:
        pytest.skip("is called with padded arrays")
    for x in ([0, 6], torch.tensor([0, 2, 6]).float(), torch.tensor([0, 6]).short(),
              torch.tensor([[0, 6]]), torch.zeros(0, dtype=torch.int64), torch.tensor([0, 2]),
              torch.tensor([1, 6]), torch.tensor([0, 4, 2, 6]), torch.tensor([0, -1, 6]),
              torch.tensor([0, 6], device="meta")):  # fmt: skip
        with pytest.raises((TypeError, ValueError), match=r"^cu_seqlens must"):
            call(cu_seqlens=x)


@pytest.mark.parametrize("name", [name for name in CALLS if "group" in options_of(name)])
def test_groups_that_are_none_are_refused_by_name(name):
    """Such as the number that torch gives to ranks which are no members of a new group."""
    for wrong in (torch.distributed.GroupMember.NON_GROUP_MEMBER, "world", torch.ones(2), [None]):
        with pytest.raises(TypeError, match=r"^group must be a ProcessGroup or None, got"):
            CALLS[name](group=wrong)


@pytest.mark.parametrize("name", CALLS)
def test_words_that_are_none_are_refused_by_name(name):
    for option in defaulting_to(str, name) - {"data_group"}:  # which may be a ProcessGroup
        for wrong in ("x", "", None, 3, ["token"], torch.ones(2)):
            with pytest.raises((TypeError, ValueError), match=rf"^{option} must be one of"):
                CALLS[name](**{option: wrong})


# --- flags and numbers ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", CALLS)
def test_flags_are_bools(name):
    call = CALLS[name]
    for flag in defaulting_to(bool, name):
        for wrong in (1, 0, None, "yes", torch.tensor(True), np.int64(1), 1.0):
            with pytest.raises(TypeError, match=rf"^{flag} must be True or False, got"):
                call(**{flag: wrong})
        for value in (True, False):
            for kind in (np.bool_, np.array):
                assert same(call(**{flag: kind(value)}), call(**{flag: value}))


class Pair:
    """As configurations have them: a length and entries, but no Sequence."""

    def __init__(self, *entries: float) -> None:
        self._entries = entries

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, i: int) -> float:
        return self._entries[i]


# Numbers, too, but None by default; with values that are exact in every dtype.
NUMBERS_OR_NONE = {"normalizer": 3.0, "rtol": 0.0625}
KINDS = [np.float64, np.float32, np.float16, np.array, Fraction, Decimal]


@pytest.mark.parametrize("name", CALLS)
def test_numbers_of_other_libraries_are_numbers(name):
    call = CALLS[name]
    numbers = defaulting_to(float, name) | (options_of(name).keys() & NUMBERS_OR_NONE)
    known = {"dtype", "weighting", "seed", "preference", "group", "out", "features",
             "task_parameters", "cu_seqlens", "last_values", "old_values", "ref_logp"}  # fmt: skip
    others = defaulting_to(bool, name) | defaulting_to(str, name)
    assert options_of(name).keys() <= numbers | others | known
    if "ref_logp" not in call.options:
        numbers -= {"kl_coef"}
    for option in sorted(numbers):
        value = NUMBERS_OR_NONE.get(option, 0.25)
        want = call(**{option: value})
        for kind in KINDS:
            assert same(call(**{option: kind(value)}), want)
        for wrong in (True, "0.5", np.bool_(True), 1j, np.complex64(1), {0: 0.5}):
            with pytest.raises(TypeError, match=f"^{option} must be"):
                call(**{option: wrong})
        for wrong in (
            torch.nan, np.float32(torch.nan), 10**400, 10**5000, Fraction(10**400), Decimal("sNaN")
        ):  # fmt: skip
            with pytest.raises(ValueError, match=f"^{option} must"):
                call(**{option: wrong})


@pytest.mark.parametrize("kind", [np.int64, np.int32, np.uint8, np.array, int])
def test_integers_of_other_libraries_are_integers(kind):
    rewards = CALLS["group_normalize"].options["rewards"]
    assert torch.equal(po.group_normalize(rewards, kind(3)), po.group_normalize(rewards, 3))
    one = po.gae(rewards[None], rewards[None], gamma=kind(1), lam=kind(0))
    assert torch.equal(one.advantages, po.gae(rewards[None], rewards[None], lam=0.0).advantages)
    for wrong in (True, np.True_, 3.0, np.float32(3), np.array(3.0), np.array([3]), "3", None,
                  torch.tensor(3)):  # fmt: skip
        with pytest.raises(TypeError, match=r"^group_size must be an integer"):
            po.group_normalize(rewards, wrong)


def test_pairs_of_other_libraries_are_pairs():
    for call in (CALLS["ppo_loss"], CALLS["pama_advantages by token"]):
        want = call(clip=(0.25, 0.5))
        for pair in (
            Pair(0.25, 0.5),
            [0.25, 0.5],
            (np.float32(0.25), np.array(0.5)),
            np.array([0.25, 0.5]),
        ):
            assert same(call(clip=pair), want)
        for wrong in (Pair(0.25), [], np.array([0.1, 0.2, 0.3])):
            with pytest.raises(ValueError, match=r"^clip must be a number or a pair"):
                call(clip=wrong)
        for wrong in ("ab", b"ab", {0: 0.1, 1: 0.2}, {0.1, 0.2}, torch.tensor([0.1, 0.2]), None):
            with pytest.raises(TypeError, match=r"^clip must be a number"):
                call(clip=wrong)
        with pytest.raises(TypeError, match=r"^clip\[1\] must be a number, got str"):
            call(clip=Pair(0.1, "0.2"))


@pytest.mark.parametrize("name", [name for name in CALLS if "preference" in options_of(name)])
def test_preferences_of_other_libraries_are_preferences(name):
    call = CALLS[name]
    n = call.options["values"].shape[-1] if name == "pama_weights" else 3
    n = 2 if name.startswith("pama_advantages") else n
    entries = [1, 3, 2][:n]
    want = call(preference=[float(x) for x in entries])
    alike = [np.array(entries), Pair(*entries), tuple(map(Fraction, entries))]
    alike += [[kind(x) for x in entries] for kind in (np.int64, np.float16, np.array)]
    for preference in alike:
        assert same(call(preference=preference), want)
    for wrong in ("1" * n, {0: 1.0}, {1.0, 2.0}, 1.0, np.array(1.0), iter(entries)):
        with pytest.raises(TypeError, match=r"^preference must be a tensor or a sequence, got"):
            call(preference=wrong)
    for wrong in (True, "3", None, [1.0], torch.ones(())):
        with pytest.raises(TypeError, match=rf"^preference\[{n - 1}\] must be a number, got"):
            call(preference=[*entries[:-1], wrong])
    for wrong in ([1.0] * (n + 1), [-1.0] * n, [0] * n, [torch.inf] * n, [torch.nan] * n):
        with pytest.raises(ValueError, match=r"^preference must"):
            call(preference=wrong)


# --- compiled -------------------------------------------------------------------------------------

TOKENS = [name for name, call in CALLS.items() if call.function in (
    po.gae, po.whiten, po.group_normalize, po.kl_divergence, po.ppo_loss, po.value_loss,
    po.pama_weights, po.pama_advantages,
)]  # fmt: skip
OTHERS = [name for name in CALLS if name not in TOKENS and name != "pareto_backward"]


def requiring_gradients(options: dict) -> dict:
    return tree_map_only(
        Tensor,
        lambda x: x.detach().clone().requires_grad_() if x.is_floating_point() else x,
        options,
    )


@pytest.mark.parametrize("checked", [False, True])
@pytest.mark.parametrize("names", [TOKENS, OTHERS], ids=["tokens", "others"])
def test_every_function_compiles_with_inputs_that_require_a_gradient(names, checked):
    """Whole, with the bits of eager calls, and the rest of a loss stays differentiable."""

    def program(options: dict) -> tuple[list[Tensor], Tensor]:
        results, rest = [], torch.zeros(())
        for name in names:
            flag = {"check_values": True} if checked and "check_values" in options_in[name] else {}
            results += tensors_in(CALLS[name].function(**options[name], **flag))
        for x in tensors_in(options):
            if x.is_floating_point():
                rest = rest + (x.float() ** 2).sum()
        return results, rest

    options_in = {name: options_of(name).keys() for name in names}
    ours, theirs = ({name: requiring_gradients(CALLS[name].options) for name in names}
                    for _ in range(2))  # fmt: skip
    want, rest = program(ours)
    got, compiled_rest = torch.compile(program, fullgraph=True, backend="aot_eager")(theirs)
    assert same(got, want)
    assert [x.requires_grad for x in got] == [x.requires_grad for x in want]
    rest.backward()
    compiled_rest.backward()
    leaves = zip(tensors_in(ours), tensors_in(theirs), strict=True)
    assert all(torch.equal(x.grad, y.grad) for x, y in leaves if x.requires_grad)


def test_one_tensor_may_be_both_of_two_arguments_compiled():
    def program(x: Tensor) -> tuple[Tensor, Tensor]:
        out = po.gae(x, x, last_values=x[..., 0])
        step = po.pama_advantages(out.advantages, log_ratio=x[0], preference=x[:, 0, 0].exp())
        return po.ppo_loss(x[0], x[0], step.advantages, ref_logp=x[0], kl_coef=0.5).loss, out[1]

    x = CALLS["gae"].options["rewards"].clone().requires_grad_()
    results = []
    for run in (program, torch.compile(program, fullgraph=True, backend="aot_eager")):
        loss, returns = run(x)
        results.append([loss, returns, *torch.autograd.grad(loss, x, retain_graph=True)])
    assert same(*results)


def test_a_compiled_constant_refuses_its_gradient():
    for name in ("gae", "whiten", "group_normalize", "pama_weights", "min_norm", "duality_gap"):
        options = requiring_gradients(CALLS[name].options)
        compiled = torch.compile(CALLS[name].function, fullgraph=True, backend="aot_eager")
        out = tensors_in(compiled(**options))[0]
        with pytest.raises(RuntimeError, match=rf"pama_ops\.{name} is not differentiable"):
            out.sum().backward()
