"""A device that is none, for tests of devices where there is no GPU.

A tensor on it says that it is on "fake:0" and holds one of the CPU, on which every operation runs: the values are real.
What would go wrong or slowly on an accelerator is refused or counted, with the line of this repository that asked for
it. The device takes torch's slot for backends from outside (PrivateUse1) by the hooks for backends written in Python.
"""

import functools
import sys
import types
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from torch.optim.optimizer import _foreach_supported_types as optimizer_types
from torch.utils._foreach_utils import _foreach_supported_types as utility_types
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

DEVICE = "fake:0"
ROOT = Path(__file__).parents[1]
aten = torch.ops.aten

# The host waits for what these give: a number, or how many there are.
WAITS = {"_local_scalar_dense", "allclose", "bincount", "equal", "is_nonzero", "masked_select", "multinomial"}
WAITS |= {"nonzero", "_unique", "_unique2", "unique_consecutive", "unique_dim", "unique_dim_consecutive"}
NO_KERNELS = {"_linalg_check_errors", "_local_scalar_dense", "_reshape_alias", "_unsafe_view", "detach", "lift_fresh"}
NO_KERNELS |= {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put"}
NOT_FACTORIES = ("sparse", "quantized", "cudnn", "mkldnn", "nested", "_make_dep_token", "from_file")


class Event(NamedTuple):
    """What an accelerator would not like, and the line that asked for it."""

    op: str
    place: str  # such as "analysis/measures/spectra.py:12"; a backward pass is at the line that asked for it


@dataclass
class Log:
    """What happened on the device."""

    mixes: list[Event] = field(default_factory=list)  # operations on tensors of both devices, which are refused
    copies: list[Event] = field(default_factory=list)  # between host and device
    waits: list[Event] = field(default_factory=list)  # of the host for the device
    draws: list[Event] = field(default_factory=list)  # random numbers that another device draws differently
    kernels: Counter = field(default_factory=Counter)  # operations that compute, by name


_logs: list[Log] = []  # of everyone who watches


@contextmanager
def watching() -> Iterator[Log]:
    """Log what happens on the device meanwhile."""
    _logs.append(Log())
    try:
        yield _logs[-1]
    finally:
        _logs.pop()


def _place() -> str:
    frame = sys._getframe(1)
    while frame := frame.f_back:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(ROOT) and ".venv" not in path.parts and path != Path(__file__):
            return f"{path.relative_to(ROOT)}:{frame.f_lineno}"
    return "elsewhere"


def _note(kind: str, op: str) -> None:
    for log in _logs:
        getattr(log, kind).append(Event(op, _place()))


def _refuse(op: str, why: str) -> None:
    _note("mixes", op)
    raise RuntimeError(f"{op} at {_place()}: {why}")


class Pretended(torch.Tensor):
    """A tensor that says it is on the device and holds one that is on the CPU."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: torch.Tensor):
        shape = {"strides": held.stride(), "storage_offset": held.storage_offset(), "dtype": held.dtype}
        self = torch.Tensor._make_wrapper_subclass(cls, held.size(), **shape, device=DEVICE)
        self.held = held
        return self

    def __repr__(self) -> str:
        return f"{self.held!r} on {DEVICE}"

    # Two that torch has for no tensors but its own.

    def tolist(self) -> list:
        return self.cpu().tolist()

    def numpy(self, *, force: bool = False):
        if force:
            return self.detach().cpu().numpy()
        raise TypeError(f"can't convert {DEVICE} device type tensor to numpy; use Tensor.cpu() first")

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})


def _run(func, args, kwargs):
    name = func._schema.name.removeprefix("aten::")
    flat, spec = tree_flatten((args, kwargs))
    ours = [x for x in flat if isinstance(x, Pretended)]
    target = kwargs.get("device")
    leaves = target is not None and torch.device(target).type == "cpu"
    if name == "copy_":
        _note_copy(args[0], args[1], kwargs.get("non_blocking", len(args) > 2 and args[2]))
    elif leaves and name == "_to_copy":
        _note_copy(torch.empty(0), args[0], kwargs.get("non_blocking", False))
    else:
        _check_one_device(name, args, flat)
        _note_waits(name, args, kwargs)
    if torch.Tag.nondeterministic_seeded in func.tags and "attention" not in name:  # which draws for dropout alone
        _note("draws", name)
    if not (func.is_view or name in NO_KERNELS or leaves or (name == "copy_" and len(ours) < 2)):
        for log in _logs:
            log.kernels[name] += 1
    inner_args, inner_kwargs = tree_unflatten([x.held if isinstance(x, Pretended) else x for x in flat], spec)
    if target is not None:
        inner_kwargs["device"] = "cpu"
    out = func(*inner_args, **inner_kwargs)
    if leaves or (name == "copy_" and not isinstance(args[0], Pretended)):
        return out
    known = {id(x.held): x for x in ours}  # what an operation in place returns is what it was given
    return tree_map_only(torch.Tensor, lambda x: known[id(x)] if id(x) in known else Pretended(x), out)


def _note_copy(to: torch.Tensor, of: torch.Tensor, non_blocking: bool) -> None:
    if isinstance(to, Pretended) == isinstance(of, Pretended):
        return
    way = "to the device" if isinstance(to, Pretended) else "to the host"
    _note("copies", way + ", without waiting" * bool(non_blocking))
    if not isinstance(to, Pretended) and not non_blocking:
        _note("waits", "copy to the host")


def _check_one_device(name: str, args: tuple, flat: list) -> None:
    """Refuse what CUDA refuses: numbers (of no axes) may be the host's, and so may indices, which are copied."""
    indices = [i for i in args[1] if i is not None] if name in INDEXING else []
    for x in flat:
        if isinstance(x, torch.Generator):
            _refuse(name, "a generator of the host cannot draw on the device")
        if not isinstance(x, torch.Tensor) or isinstance(x, Pretended):
            continue
        if any(x is i for i in indices):
            _note("copies", "to the device")
        elif x.ndim or name in ("cat", "stack"):
            _refuse(name, f"expected all tensors to be on the same device, but found {DEVICE} and cpu")


def _note_waits(name: str, args: tuple, kwargs: dict) -> None:
    masks = [i for i in args[1] if i is not None and i.dtype in (torch.bool, torch.uint8)] if name in INDEXING else []
    one_value = len(args) > 2 and masks and args[2].numel() == 1 and len(masks) == 1  # filled in, wherever the mask is
    counts = name == "repeat_interleave" and kwargs.get("output_size") is None
    if name in WAITS or (masks and not one_value) or counts:
        _note("waits", name)


def _module() -> types.ModuleType:
    """What torch asks of torch.fake."""
    module = types.ModuleType("torch.fake")
    module.is_available = module.is_initialized = lambda: True
    module.device_count = lambda: 1
    module.current_device = lambda: 0
    module._is_in_bad_fork = lambda: False
    module.manual_seed_all = module.manual_seed = lambda seed: None
    module.get_rng_state = lambda device=None: torch.get_rng_state()  # it draws as the CPU does, which torch restores
    module.set_rng_state = lambda state, device=None: None
    module.get_amp_supported_dtype = lambda: [torch.bfloat16, torch.float16]
    return module


def _factories() -> Iterator[tuple[str, torch._ops.OpOverload]]:
    """Everything that makes a tensor on a device from none, by name."""
    for full in torch._C._dispatch_get_all_op_names():
        name, _, overload = full.removeprefix("aten::").partition(".")
        if not full.startswith("aten::") or any(part in name for part in NOT_FACTORIES):
            continue
        op = getattr(getattr(aten, name, None), overload or "default", None)
        if op is None or not any(a.name == "device" for a in op._schema.arguments):
            continue
        gives = [str(r.type) for r in op._schema.returns] == ["Tensor"]
        if gives and not any("Tensor" in str(a.type) for a in op._schema.arguments):
            yield full.removeprefix("aten::"), op


def _attention(q, k, v, attn_mask=None, dropout_p=0.0, is_causal=False, *, scale=None, enable_gqa=False):
    """One kernel, as on a GPU; torch takes it apart for a device of a kind that it does not know."""
    flash = aten._scaled_dot_product_flash_attention_for_cpu
    return flash(q, k, v, dropout_p, is_causal, attn_mask=attn_mask, scale=scale)[0]


@functools.cache
def register() -> torch.library.Library:
    """Make the device known to torch, for the rest of the process."""
    torch.zeros(1, requires_grad=True).sum().backward()  # before there is a device for which torch starts threads:
    torch.autograd.set_multithreading_enabled(False)  # a process with these cannot fork, and they hide who asked
    _setup_privateuseone_for_python_backend("fake", backend_module=_module())
    library = torch.library.Library("aten", "IMPL")  # which lasts as long as the cache has it
    for name, op in _factories():
        library.impl(name, lambda *args, op=op, **kwargs: _run(op, args, kwargs), "PrivateUse1")
    copy, number = aten.copy_.default, aten._local_scalar_dense.default  # torch.tensor comes to both by another way
    library.impl("_copy_from", lambda x, to, non_blocking=False: _run(copy, (to, x, non_blocking), {}), "PrivateUse1")
    library.impl("_local_scalar_dense", lambda x: _run(number, (x,), {}), "PrivateUse1")
    library.impl("scaled_dot_product_attention", _attention, "AutogradPrivateUse1")
    for supported in (optimizer_types, utility_types):  # by operations on lists, which ask for the type
        supported.append(Pretended)
    return library
