"""Streaming moments of features: what every spectral diagnostic needs of n rows, in O(d²) memory."""

from numbers import Integral
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Shaped
from scipy.linalg import blas
from torch import Tensor
from torch import distributed as dist

from .inputs import Array, as_features, as_labels, as_tensor, centered

CHUNK = 2**20  # entries of a chunk in float64, 8 MiB: long enough for the product to dominate, short enough for a cache
COLUMNS = 2**17  # entries of a chunk of columns: 1 MiB in float64, for a second-level cache
WAITING = 2**25  # bytes of rows that wait to be added: 32 MiB
STATE = ("mean", "scatter", "cubic", "quartic")


def gram(x: Float[Tensor, "n d"]) -> Float[Tensor, "d d"]:
    """Gram matrix xᵀx; on the CPU by BLAS's symmetric rank-k product, at half the cost of a general one.

    Args:
        x: (n, d).

    >>> gram(torch.tensor([[1.0, 2.0], [0.0, 1.0]]))
    tensor([[1., 2.],
            [2., 5.]])
    """
    if x.device.type == "cpu" and not x.requires_grad:
        return _mirrored(_add_upper(x.new_zeros(x.shape[1], x.shape[1]), x))
    with torch.autocast(x.device.type, enabled=False):
        return x.mT @ x


def dual_gram(z: Float[Tensor, "n d"], *, center: bool) -> Float[Tensor, "n n"]:
    """Inner products zzᵀ of the rows in float64.

    On the CPU they are computed some columns at a time, without a copy of z in float64.

    Args:
        z: (n, d).
        center: subtract the mean of the rows.

    >>> dual_gram(torch.tensor([[1.0, 0.0], [3.0, 0.0]]), center=True)
    tensor([[ 1., -1.],
            [-1.,  1.]], dtype=torch.float64)
    """
    if z.device.type != "cpu" or z.requires_grad:
        z = z.double()
        return gram((centered(z) if center else z).mT)
    total, step = torch.zeros(len(z), len(z), dtype=torch.float64), max(COLUMNS // len(z), 64)
    buffer = total.new_empty(len(z) * min(step, z.shape[1]))
    for columns in z.split(step, 1):
        x = buffer[: columns.numel()].view(columns.shape).copy_(columns)
        _add_upper(total, (centered(x) if center else x).mT)
    return _mirrored(total)


def _add_upper(total: Float[Tensor, "d d"], x: Float[Tensor, "n d"]) -> Float[Tensor, "d d"]:
    """The upper triangle of total + xᵀx, in place of a total on the CPU and of x's type."""
    syrk = blas.dsyrk if x.dtype == torch.float64 else blas.ssyrk
    a, by_rows = x.numpy(), x.is_contiguous()  # BLAS reads columns first: contiguous rows are columns of the transpose
    syrk(1.0, a.T if by_rows else a, beta=1.0, c=total.numpy().T, trans=not by_rows, lower=True, overwrite_c=True)
    return total


def _mirrored(upper: Float[Tensor, "d d"], block: int = 128) -> Float[Tensor, "d d"]:
    """The symmetric matrix of an upper triangle, in place, by blocks that fit a cache."""
    for i in range(0, len(upper), block):
        rows, j = upper[i : i + block], i + block
        rows[:, i:j] += rows[:, i:j].triu(1).mT
        upper[j:, i:j] = rows[:, j:].mT
    return upper


class _Sum:
    """An attribute of `Moments` that is up to date when it is read: the rows that wait are added first."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = f"_{name}"

    def __get__(self, moments: "Moments | None", owner: type) -> object:
        return self if moments is None else getattr(moments._added(), self.name)

    def __set__(self, moments: "Moments", value: object) -> None:
        setattr(moments._added(), self.name, value)


class Moments:
    """The count, mean and centered scatter of feature rows, accumulated in float64 batch by batch and mergeable.

    scatter = Σᵢ (zᵢ − z̄)(zᵢ − z̄)ᵀ,  cubic = Σᵢ ‖zᵢ − z̄‖²(zᵢ − z̄),  quartic = Σᵢ ‖zᵢ − z̄‖⁴

    Memory is O(d²) whatever n, times 1 + classes + blocks. The rows are neither normalized nor kept, and gradients stop
    here. Adding rows to the sums costs O(d²) however few they are, so small batches wait until they are d rows or
    32 MiB, whichever is less, or until any number is asked for. `by_class[k]` are the Moments of class k and
    `by_block[b]` those of the rows i ≡ b (mod blocks).

    Blocks serve the jackknife, which needs blocks that are exchangeable. A contiguous run of a data set that is sorted
    by class is not; every blocks-th row is, as long as the rows are independent. Rows that depend on one another (views
    of one image) must share a block: pass one view of all images at a time, with a number of images that is a multiple
    of `blocks`.

    Args:
        d: dimension of the features.
        classes: number of classes; labels must then come with every batch.
        blocks: number of blocks, 0 or at least 2; 16 is a good number.
        precision: "exact" forms the products in float64. "fast" forms them in float32 and only adds them up in float64,
            which loses singular values below about 3·10⁻⁴ of the largest (TF32, where switched on, loses more).
        device: where the sums are kept; the CPU for MPS, which has no float64.

    Raises:
        ValueError: a precision of another name, one block, or what is no number of them.

    Source: Chan, Golub & LeVeque 1983, eq. 2.1b (merging); Chun et al. 2025, arXiv 2509.26560 (the use of quartic).

    >>> z = torch.arange(12.0).reshape(6, 2)
    >>> moments = Moments(2).update(z[:4]).update(z[4:])
    >>> moments.n, moments.mean.tolist()
    (6, [5.0, 6.0])
    >>> torch.equal(moments.covariance, Moments.of(z).covariance)
    True
    """

    n, mean, scatter, cubic, quartic = _Sum(), _Sum(), _Sum(), _Sum(), _Sum()
    by_class, by_block = _Sum(), _Sum()

    def __init__(
        self,
        d: int,
        *,
        classes: int = 0,
        blocks: int = 0,
        precision: Literal["exact", "fast"] = "exact",
        device: torch.device | str | None = None,
    ):
        if precision not in ("exact", "fast"):
            raise ValueError(f'precision must be "exact" or "fast", got {precision!r}')
        if not all(isinstance(x, Integral) and x >= least for x, least in ((d, 1), (classes, 0), (blocks, 0))):
            raise ValueError(f"d, classes and blocks must be integers, d positive, got {d}, {classes} and {blocks}")
        if blocks == 1:
            raise ValueError("blocks must be 0 or at least 2: one block says nothing about the spread")
        device = "cpu" if device is not None and torch.device(device).type == "mps" else device  # which has no float64
        zeros = torch.zeros(d * d + 2 * d + 1, dtype=torch.float64, device=device).split([d, d * d, d, 1])
        self._rows, self._labels, self._waiting = None, None, 0  # rows that wait, their labels, how many they are
        self.n, self.d, self.precision = 0, d, precision
        self.mean, self.scatter = zeros[0], zeros[1].view(d, d)  # (d,), (d, d)
        self.cubic, self.quartic = zeros[2], zeros[3].view(())  # (d,), ()
        self.by_class = [Moments(d, precision=precision, device=device) for _ in range(classes)]
        self.by_block = [Moments(d, precision=precision, device=device) for _ in range(blocks)]

    @classmethod
    def of(
        cls,
        z: Array,
        labels: Array | None = None,
        *,
        classes: int = 0,
        blocks: int = 0,
        precision: Literal["exact", "fast"] = "exact",
    ) -> "Moments":
        """Moments of features in memory.

        Args:
            z: (n, d).
            labels: (n,) class of each row. Without `classes` the k-th class is the k-th of those that occur, in order.
            classes: number of classes; labels are then class indices below it.
            blocks: number of blocks.
            precision: "exact" or "fast", as above.

        >>> Moments.of(torch.eye(4), torch.tensor([0, 0, 1, 1])).by_class[1].mean.tolist()
        [0.0, 0.0, 0.5, 0.5]
        """
        z = as_features(z)
        if labels is not None and not classes:
            found, labels = as_labels(labels, len(z)).unique(return_inverse=True)
            classes = len(found)
        out = cls(z.shape[1], classes=classes, blocks=blocks, precision=precision, device=z.device)
        return out._add_rows(*out._checked(z, labels))

    @property
    def second_moment(self) -> Float[Tensor, "d d"]:
        """The second moment Γ = Σ zzᵀ/n, (d, d), which is not centered.

        >>> Moments.of(torch.tensor([[2.0], [4.0]])).second_moment.item()
        10.0
        """
        return torch.addr(self.covariance, self.mean, self.mean)

    @property
    def covariance(self) -> Float[Tensor, "d d"]:
        """The covariance Σ (z − z̄)(z − z̄)ᵀ/n, (d, d), with the biased 1/n, so that Γ = covariance + z̄z̄ᵀ.

        >>> Moments.of(torch.tensor([[2.0], [4.0]])).covariance.item()
        1.0
        """
        return self.scatter / max(self.n, 1)

    @property
    def has_unit_energy(self) -> bool:
        """Whether the mean of ‖z‖² is 1 up to 1 %, as it is for rows on the unit sphere.

        >>> Moments.of(torch.eye(2)).has_unit_energy, Moments.of(2 * torch.eye(2)).has_unit_energy
        (True, False)
        """
        return bool(abs(self.second_moment.trace() - 1) <= 1e-2)

    def update(self, z: Array, labels: Array | None = None) -> "Moments":
        """Add a batch of rows.

        Args:
            z: (n, d).
            labels: (n,) class indices, if there are classes.

        Raises:
            ValueError: another d, labels without classes or classes without labels, NaN.

        >>> Moments(2).update(torch.ones(3, 2)).update(torch.ones(5, 2)).n
        8
        """
        z, labels = self._checked(as_features(z), labels)
        room = min(self.d, WAITING // (self.d * z.itemsize))
        if len(z) >= room:
            return self._added()._add_rows(z, labels)
        if self._rows is not None and self._rows.dtype != z.dtype:
            self._added()
        while len(z):
            if self._rows is None:
                with torch.inference_mode(False):  # rows may come in that mode and outside of it
                    self._rows, self._labels = z.new_empty(room, self.d), z.new_empty(room, dtype=torch.int64)
            new = slice(self._waiting, min(self._waiting + len(z), room))
            count = new.stop - new.start
            self._rows[new] = z[:count]
            if labels is not None:
                self._labels[new], labels = labels[:count], labels[count:]
            z, self._waiting = z[count:], new.stop
            if self._waiting == room:
                self._added()
        return self

    def _checked(self, z: Float[Tensor, "n d"], labels: Array | None) -> tuple[Tensor, Tensor | None]:
        """Rows and labels where the sums are, if they fit them."""
        z = z.detach().to(self._mean.device)
        if z.shape[1] != self.d:
            raise ValueError(f"z must have d={self.d} columns, got {z.shape[1]}")
        if (labels is not None) != bool(self._by_class):
            raise ValueError("labels must be given exactly when Moments was made with classes")
        if labels is not None:
            labels = as_labels(labels, len(z), classes=len(self._by_class), device=z.device)
        return z, labels

    def _added(self) -> "Moments":
        """Itself, once the rows that wait are added."""
        if self._waiting:
            rows, labels = self._rows[: self._waiting], self._labels[: self._waiting]
            self._rows, self._labels, self._waiting = None, None, 0
            self._add_rows(rows, labels if self._by_class else None)
        return self

    def __getstate__(self) -> dict:
        """What copies and pickles are made of."""
        return self._added().__dict__.copy()

    @torch.no_grad()
    def _add_rows(self, z: Float[Tensor, "n d"], labels: Tensor | None) -> "Moments":
        if labels is not None:
            for k in labels.unique().tolist():
                part = self._of_rows(z[labels == k])
                self.by_class[k]._add(part)
                if not self.by_block:
                    self._add(part)
        start = self.n
        for i in range(min(len(self.by_block), len(z))):
            part = self._of_rows(z[i :: len(self.by_block)])
            self.by_block[(start + i) % len(self.by_block)]._add(part)
            self._add(part)
        if not self.by_block and not self.by_class:
            self._add(self._of_rows(z))
        return self

    def merge(self, other: "Moments") -> "Moments":
        """Add the rows that another `Moments` has seen: shards of any sizes give the numbers of one pass.

        Raises:
            ValueError: the other has another d, classes or blocks.

        >>> Moments.of(torch.ones(3, 2)).merge(Moments.of(torch.zeros(1, 2))).mean.tolist()
        [0.75, 0.75]
        """
        shape, theirs = ((m.d, len(m.by_class), len(m.by_block)) for m in (self, other))
        if shape != theirs:
            raise ValueError(f"Moments of (d, classes, blocks) = {theirs} cannot be merged into {shape}")
        self._add(other)
        for mine, its in zip(self.by_class + self.by_block, other.by_class + other.by_block, strict=True):
            mine._add(its)
        return self

    def all_reduce(self, group: dist.ProcessGroup | None = None) -> "Moments":
        """Merge over all ranks of a process group, in place; call it once, after the last update.

        It sends O(d²) bytes, whatever n.
        """
        total = torch.cat([self.mean * self.n, self.mean.new_tensor([self.n])])
        dist.all_reduce(total, group=group)
        n = int(total[-1].item())
        point = total[:-1] / max(n, 1)
        about = torch.cat([t.reshape(-1) for t in self._about(point)])
        dist.all_reduce(about, group=group)
        scatter, self.cubic, quartic = about.split([self.d**2, self.d, 1])
        self.n, self.mean, self.scatter, self.quartic = n, point, scatter.view(self.d, self.d), quartic.view(())
        for part in self.by_class + self.by_block:
            part.all_reduce(group)
        return self

    def without(self, *blocks: int) -> "Moments":
        """Moments of all rows that are not in the given blocks.

        >>> Moments.of(torch.tensor([[1.0], [2.0], [3.0], [4.0]]), blocks=2).without(0).mean.item()
        3.0
        """
        parts = [self.by_block[b] for b in blocks]
        out = Moments(self.d, precision=self.precision, device=self.mean.device)
        out.n = self.n - sum(part.n for part in parts)
        out.mean = self.mean + sum((self.mean - part.mean) * (part.n / max(out.n, 1)) for part in parts)
        about = [part._about(out.mean) for part in parts]
        own = self._about(out.mean)
        out.scatter, out.cubic, out.quartic = (
            a - sum(its) for a, its in zip(own, zip(*about, strict=True), strict=True)
        )
        return out

    def quartic_about_zero(self) -> Float[Tensor, ""]:
        """Σ ‖z‖⁴, the quartic sum of the rows as they are.

        >>> Moments.of(torch.tensor([[1.0], [2.0]])).quartic_about_zero().item()
        17.0
        """
        return self._higher_about(torch.zeros_like(self.mean))[1]

    def state_dict(self) -> dict[str, Tensor]:
        """All sums as one dictionary of tensors, fit for safetensors.

        >>> sorted(Moments(3).state_dict())
        ['cubic', 'mean', 'n', 'quartic', 'scatter']
        """
        state = {"n": torch.tensor(self.n)} | {name: getattr(self, name).clone() for name in STATE}
        for prefix, parts in (("by_class", self.by_class), ("by_block", self.by_block)):
            for i, part in enumerate(parts):
                state |= {f"{prefix}.{i}.{name}": value for name, value in part.state_dict().items()}
        return state

    def load_state_dict(self, state: dict[str, Tensor]) -> "Moments":
        """Take over the sums that `state_dict` gave.

        Raises:
            ValueError: they are of Moments with another d, classes or blocks.

        >>> Moments(2).load_state_dict(Moments.of(torch.eye(2)).state_dict()).n
        2
        """
        shapes = {name: value.shape for name, value in self.state_dict().items()}
        if shapes != {name: value.shape for name, value in state.items()}:
            raise ValueError("the state is of Moments with another d, classes or blocks")
        self.n = int(state["n"])
        for name in STATE:
            setattr(self, name, state[name].to(self.mean, copy=True))
        for prefix, parts in (("by_class", self.by_class), ("by_block", self.by_block)):
            for i, part in enumerate(parts):
                start = f"{prefix}.{i}."
                part.load_state_dict({k.removeprefix(start): v for k, v in state.items() if k.startswith(start)})
        return self

    def _of_rows(self, z: Float[Tensor, "n d"]) -> "Moments":
        """Moments of rows in memory: the mean first, then products of rows that are centered at it."""
        out, on_cpu = Moments(self.d, precision=self.precision, device=self.mean.device), z.device.type == "cpu"
        dtype = torch.float64 if self.precision == "exact" else torch.float32
        chunks = z.split(max(CHUNK * 8 // dtype.itemsize // self.d, 64))
        buffer = torch.empty_like(chunks[0], dtype=dtype)  # fresh pages for every chunk would cost a tenth
        product = torch.zeros_like(out.scatter, dtype=dtype) if on_cpu and self.precision == "fast" else None

        def measured_from(point: Tensor, chunk: Tensor) -> Tensor:
            x = buffer[: len(chunk)]
            return torch.sub(chunk, point, out=x) if chunk.dtype == dtype else x.copy_(chunk).sub_(point)

        first = z[0].to(dtype)  # measured from a row, equal rows have a scatter of exactly zero
        total = sum(measured_from(first, chunk).sum(0).double() for chunk in chunks)
        out.n = len(z)
        out.mean = first + total / out.n
        mean = out.mean.to(dtype)
        for chunk in chunks:
            x = measured_from(mean, chunk)  # (rows, d)
            norms2 = torch.linalg.vector_norm(x, dim=1).square()  # (rows,)
            if not on_cpu:
                out.scatter += gram(x)
            elif product is None:
                _add_upper(out.scatter, x)
            else:  # numpy's sum of two types, as torch's converts a copy
                np.add(out.scatter, _add_upper(product.zero_(), x).numpy(), out=out.scatter.numpy())
            with torch.autocast(x.device.type, enabled=False):
                out.cubic += norms2 @ x
            out.quartic += norms2.double().square().sum()
        if on_cpu:
            _mirrored(out.scatter)
        return out

    def _add(self, other: "Moments") -> None:
        """Chan's merge. State is replaced, never written into, so that it may be shared."""
        if self.n == 0:
            self.n = other.n
            for name in STATE:
                setattr(self, name, getattr(other, name).to(self.mean))
        elif other.n:
            n = self.n + other.n
            delta = other.mean.to(self.mean) - self.mean
            point = self.mean + delta * (other.n / n)
            own, its = self._higher_about(point), other._higher_about(point)
            scatter = self.scatter + other.scatter.to(self.scatter)
            self.scatter = scatter.addr_(delta, delta, alpha=self.n * other.n / n)
            self.cubic, self.quartic = (a + b.to(a) for a, b in zip(own, its, strict=True))
            self.n, self.mean = n, point

    def _about(self, point: Float[Tensor, " d"]) -> tuple[Tensor, Tensor, Tensor]:
        """Scatter, cubic and quartic sums about another point, where they simply add: Σ over y + δ with Σy = 0."""
        delta = self.mean - point.to(self.mean)
        return torch.addr(self.scatter, delta, delta, alpha=self.n), *self._higher_about(point)

    def _higher_about(self, point: Float[Tensor, " d"]) -> tuple[Tensor, Tensor]:
        """The cubic and quartic of `_about`."""
        delta = self.mean - point.to(self.mean)
        pulled, trace, square = self.scatter @ delta, self.scatter.trace(), delta @ delta
        quartic = self.quartic + 4 * (delta @ pulled + self.cubic @ delta) + 2 * trace * square + self.n * square**2
        return self.cubic + 2 * pulled + (trace + self.n * square) * delta, quartic


def features_or_moments(x: Array) -> Shaped[Tensor, "..."] | Moments:
    """What a measure of either is given: `Moments` as they are, and anything else as a tensor (`inputs.as_tensor`).

    >>> features_or_moments([1.0, 2.0])
    tensor([1., 2.], dtype=torch.float64)
    """
    return x if isinstance(x, Moments) else as_tensor(x, "z")
