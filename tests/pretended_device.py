"""A device without hardware: tensors that say that they are on `fake:0`, and hold real ones on the CPU.

It is torch's PrivateUse1 backend in Python: every operation runs with real values on the tensors held, and a `Trace`
counts what a GPU would feel: kernels, copies between host and device, and waits, each with the line of the project
that asked for it. An operation that mixes devices fails, as on a GPU. Unseen is what a kernel does by itself: numbers
come from the CPU's, and what those wait for inside (a check of a factorization) is not a wait here.
"""

import traceback
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

NAME = "fake"
ROOT = str(Path(__file__).parents[1])
WAITS = {"_local_scalar_dense", "nonzero", "equal", "is_nonzero", "_unique2", "masked_select", "bincount", "unique_dim"}
MOVES = {"_to_copy", "copy_", "_copy_from", "_copy_from_and_resize"}


class _Module(_DummyBackendModule):
    def get_amp_supported_dtype(self) -> list:
        return [torch.bfloat16, torch.float16]

    def manual_seed_all(self, seed: int) -> None:
        pass


class Trace:
    """What a GPU would have felt: counts by line."""

    def __init__(self) -> None:
        self.kernels, self.copies, self.waits = Counter(), Counter(), Counter()


_trace = [Trace()]


def _line() -> str:
    own = [f for f in traceback.extract_stack() if f.filename.startswith(ROOT) and f.filename != __file__]
    own = [f for f in own if ".venv" not in f.filename] or [None]
    return f"{own[-1].filename.removeprefix(ROOT)}:{own[-1].lineno}" if own[-1] else "in the backward"


class OnDevice(torch.Tensor):
    """A tensor that says it is on the pretended device, and holds one on the CPU."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor):
        options = {"strides": held.stride(), "dtype": held.dtype, "device": f"{NAME}:0"}
        made = torch.Tensor._make_wrapper_subclass(cls, held.shape, **options)
        made.held = held
        return made

    def __repr__(self) -> str:
        return f"OnDevice({self.held})"

    def tolist(self) -> list:
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})


class _Factories(TorchDispatchMode):
    """Takes care of operations without a tensor, such as torch.eye(3, device="fake")."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})


def _run(func, args: tuple, kwargs: dict):
    leaves = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, torch.Tensor)]
    there, here = (
        [x for x in leaves if isinstance(x, OnDevice)],
        [x for x in leaves if not isinstance(x, OnDevice) and x.ndim],
    )
    asked = kwargs.get("device")
    asked = None if asked is None else torch.device(asked).type
    if not there and asked != NAME:
        return func(*args, **kwargs)
    name, trace = func._schema.name.split("::")[1], _trace[0]
    moves = name in MOVES and (bool(here) or asked not in (None, NAME))
    indexes = name in ("index", "index_put_", "_index_put_impl_") and not any(x is args[0] for x in here)
    if there and here and not moves and not indexes:
        raise RuntimeError(f"{name} mixes {NAME}:0 and cpu: {[tuple(x.shape) for x in (*there, *here)]} at {_line()}")
    masks = indexes and any(x.dtype in (torch.bool, torch.uint8) for x in leaves[1:])
    to_host = moves and (asked == "cpu" or not isinstance(args[0] if name != "_to_copy" else None, OnDevice | None))
    if name in WAITS or masks or to_host or (indexes and here):
        trace.waits[_line()] += 1
    if moves or (indexes and here) or name == "_local_scalar_dense":
        trace.copies[_line()] += 1
    view = any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)
    if not (view or moves or name in ("detach", "empty", "empty_like", "empty_strided", "_local_scalar_dense")):
        trace.kernels[_line()] += 1
    cpu = {k: torch.device("cpu") if k == "device" and v is not None else v for k, v in kwargs.items()}
    with torch.utils._python_dispatch._disable_current_modes():
        held = tree_map(lambda x: x.held if isinstance(x, OnDevice) else x, (args, cpu))
        out = func(*held[0], **held[1])
    if asked == "cpu":
        return out
    if name in ("copy_",) and not isinstance(args[0], OnDevice):
        return args[0]
    wrapped = tree_map(lambda x: OnDevice(x) if isinstance(x, torch.Tensor) else x, out)
    return return_and_correct_aliasing(func, args, kwargs, wrapped)


@contextmanager
def pretended_device():
    """Let `fake:0` be a device meanwhile, and say what it felt.

    >>> with pretended_device() as trace:
    ...     x = torch.ones(3, device="fake") + 1
    ...     sum(trace.kernels.values()), sum(trace.waits.values()), x.sum().item(), sum(trace.waits.values())
    (2, 0, 6.0, 1)
    """
    if torch._C._get_privateuse1_backend_name() != NAME:
        _setup_privateuseone_for_python_backend(NAME, backend_module=_Module())
    _trace[0] = Trace()
    with _Factories():
        yield _trace[0]
