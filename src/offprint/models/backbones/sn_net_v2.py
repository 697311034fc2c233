r"""Stitched ViTs are Flexible Vision Backbones (Pan, Liu, He, Cai, Zhuang; ECCV 2024; arXiv 2307.00154), and its predecessor.

Two plain transformers, the anchors, are joined by linear layers. A pass may start in one, leave it after block :math:`i`, and enter the
other: the smaller one (0) is left for the larger one (1) at block :math:`(i + 1) q`, :math:`q = d_1 / d_0` the ratio of depths; version 2
also goes the other way, and there and back. Each way through is a *stitch* with an id, a cost, and its own accuracy; one set of weights
holds all of them, and the id may change between two calls. A stitching layer is applied to all tokens,

.. math:: y = W x + b + \tfrac{1}{r} B A x,

where :math:`W` and :math:`b` start as the least-squares map of the features before onto those that the entered block expects, and of
:math:`W` only the low-rank change :math:`BA` is trained (:math:`r = 0`: :math:`W` itself, as in version 1). In training each step draws one
stitch for its whole batch: a group of stitches of like cost, then one of the group.

Nothing is merged behind the user's back: :math:`BA` is folded into :math:`W` by :func:`offprint.deploy` alone, in a copy.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offprint.errors import OffprintError
from offprint.models.backbone import Backbone
from offprint.models.backbones.deit3 import VARIANTS as DEIT3
from offprint.models.backbones.deit3 import DeiT3, Tokens, adapt_positions
from offprint.models.checkpoint import Dialect
from offprint.models.registry import Weights, register
from offprint.models.released import top


# -- which ways there are ---------------------------------------------------------------------------------------------
class Segment(NamedTuple):
    """A part of a way: blocks ``first`` to ``last`` (both are run) of an anchor, and the stitching layer behind them (-1: none)."""

    anchor: int
    first: int
    last: int
    stitch: int = -1


@dataclass(frozen=True)
class Stitches:
    """All ways through two anchors of given depths, by id.

    Attributes:
        paths: id → segments.
        kinds: kind → its ids: ``anchors``, ``sl`` (small to large), ``ls``, ``lsl``, ``sls``.
        layers: stitching layers from small to large, and from large to small.
        used: ids that are drawn in training and evaluated.
    """

    paths: tuple[tuple[Segment, ...], ...]
    kinds: dict[str, tuple[int, ...]]
    layers: tuple[int, int]
    used: tuple[int, ...]

    def kind(self, stitch: int) -> str:
        """The kind of an id; ``sl`` for the one that is listed and not used, too."""
        return next((k for k, ids in self.kinds.items() if stitch in ids), "sl")


def stitch_configs(depths: Sequence[int], two_way: bool = True) -> Stitches:
    """The stitches of anchors with these numbers of blocks, in the order that gives their ids (Sec. 3.2).

    Args:
        depths: of the small and the large anchor.
        two_way: version 2; otherwise only the large anchor alone (id 0) and small to large.

    Raises:
        OffprintError: the larger depth is no multiple of the smaller one.
    """
    d0, d1 = (int(d) for d in depths)
    if d0 < 1 or d1 < d0 or d1 % d0:
        raise OffprintError(
            f"anchors of {d0} and {d1} blocks do not fit: the second must have as many blocks as the first, or a multiple of them "
            f"({d0}, {2 * d0}, {3 * d0}, ...)"
        )
    ratio, ends = d1 // d0, (d0 - 1, d1 - 1)
    out = [(i, (i + 1) * ratio, i) for i in range(d0)]  # leave block, enter block, layer
    large = [(Segment(0, 0, i, layer), Segment(1, enter, ends[1])) for i, enter, layer in out]
    if not two_way:
        paths = [(Segment(1, 0, ends[1]),), *large]
        return Stitches(
            tuple(paths), {"anchors": (0,), "sl": tuple(range(1, d0 + 1))}, (d0, 0), tuple(range(len(paths)))
        )
    back = [(j, j * d0 // d1 + 1, j // ratio) for j in range(d1 - 1) if d0 == d1 or j % 2]
    small = [(Segment(1, 0, j, layer), Segment(0, enter, ends[0])) for j, enter, layer in back]
    there_and_back = {
        "lsl": [
            (Segment(1, 0, j, down), Segment(0, into, i, up), Segment(1, again, ends[1]))
            for j, into, down in back for i, again, up in out[:-1] if i >= into
        ],
        "sls": [
            (Segment(0, 0, i, up), Segment(1, into, j, down), Segment(0, again, ends[0]))
            for i, into, up in out[:-1] for j, again, down in back if j >= into
        ],
    }  # fmt: skip
    paths = [(Segment(0, 0, ends[0]),), (Segment(1, 0, ends[1]),)]
    kinds = {"anchors": (0, 1)}
    for name, ways in (("sl", large), ("ls", small), *there_and_back.items()):
        kinds[name] = tuple(range(len(paths), len(paths) + len(ways)))
        paths += ways
    whole_small = kinds["sl"][-1]  # all of the small anchor, and of the large one its norm and head: listed, not used
    kinds["sl"] = kinds["sl"][:-1]
    used = tuple(i for i in range(len(paths)) if i != whole_small)
    return Stitches(tuple(paths), kinds, (d0, max((layer for *_, layer in back), default=-1) + 1), used)


def group_by_flops(flops: Mapping[int | str, float], gap: float = 1.0) -> list[list[int]]:
    """Stitches in groups of like cost, cheapest first (Sec. 3.3).

    A group begins with its cheapest member and holds all that cost at most ``gap`` more than that one.

    Args:
        flops: id → multiply-adds (single ones, not billions).
        gap: in billions.
    """
    if gap < 0:
        raise OffprintError(f"gap={gap}; give billions of multiply-adds, 0 or more")
    groups: list[list[int]] = []
    first = 0.0
    for name, cost in sorted(flops.items(), key=lambda item: item[1]):
        if not groups or abs(cost - first) / 1e9 > gap:
            groups.append([])
            first = cost
        groups[-1].append(int(name))
    return [sorted(group) for group in groups]


def group_probabilities(groups: int, k: float = 0.0) -> list[float]:
    """How often each group is drawn: all alike, or with ``k`` the dearer ones more often, as :math:`i / k + 1 / n`."""
    weights = [i / k + 1 / groups if k else 1.0 for i in range(groups)]
    return [w / sum(weights) for w in weights]


def least_squares_stitch(front: Tensor, back: Tensor) -> tuple[Tensor, Tensor]:
    """Weight and bias of the linear layer that maps features onto others in least squares (Sec. 3.1).

    Args:
        front: (..., in) features where one anchor is left.
        back: (..., out) features of the same tokens before the block that is entered.

    Returns:
        Weight (out, in) and bias (out,), solved in float32 or wider on the CPU.

    Raises:
        OffprintError: fewer tokens than unknowns, or tokens that do not match.
    """
    if front.shape[:-1] != back.shape[:-1]:
        raise OffprintError(
            f"features of {tuple(front.shape[:-1])} and {tuple(back.shape[:-1])} tokens cannot be matched; both anchors must see the same "
            "pictures in the same patches"
        )
    kind = torch.float64 if torch.float64 in (front.dtype, back.dtype) else torch.float32
    a, b = (x.detach().flatten(0, -2).to("cpu", kind) for x in (front, back))
    if len(a) <= a.shape[1]:
        raise OffprintError(
            f"{len(a)} tokens cannot determine {a.shape[1] + 1} coefficients for each output; give more pictures"
        )
    if not (torch.isfinite(a).all() and torch.isfinite(b).all()):
        raise OffprintError(
            "the anchors give features that are not finite on these pictures; check their weights and the pictures"
        )
    solution = torch.linalg.pinv(torch.cat([a, a.new_ones(len(a), 1)], 1)) @ b
    return solution[:-1].T.contiguous(), solution[-1]


# -- layers -----------------------------------------------------------------------------------------------------------
class StitchLinear(nn.Module):
    r"""The linear layer of a stitch, :math:`W x + b + BA x / r`.

    Args:
        in_features, out_features: widths.
        rank: of the trained change of :math:`W`; 0 trains :math:`W` itself.
    """

    lora_A: nn.Parameter | None
    lora_B: nn.Parameter | None

    def __init__(self, in_features: int, out_features: int, rank: int = 0):
        super().__init__()
        if rank < 0 or rank > min(in_features, out_features):
            raise OffprintError(
                f"rank={rank}: a stitch from {in_features} to {out_features} takes 0 (its whole weight is trained) to "
                f"{min(in_features, out_features)}"
            )
        self.rank = rank
        self.weight = nn.Parameter(torch.empty(out_features, in_features), requires_grad=not rank)
        self.bias = nn.Parameter(torch.zeros(out_features))
        nn.init.trunc_normal_(self.weight, std=0.02)
        self.lora_A = self.lora_B = None
        if rank:
            self.lora_A = nn.Parameter(torch.empty(rank, in_features))
            self.lora_B = nn.Parameter(torch.zeros(out_features, rank))
            nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        y = F.linear(x, self.weight, self.bias)
        if self.lora_A is None or self.lora_B is None:
            return y
        return y + F.linear(F.linear(x, self.lora_A), self.lora_B) / self.rank

    @torch.no_grad()
    def merge(self) -> None:
        """Fold the low-rank change into the weight; :func:`offprint.deploy` calls it on its copy."""
        if self.lora_A is None or self.lora_B is None:
            return
        change = self.lora_B.double() @ self.lora_A.double() / self.rank
        self.weight = nn.Parameter((self.weight.double() + change).to(self.weight.dtype))
        self.lora_A, self.lora_B, self.rank = None, None, 0

    def extra_repr(self) -> str:
        return f"{self.weight.shape[1]}, {self.weight.shape[0]}, rank={self.rank}"


class Stitch(nn.Module):
    """One stitching layer, over all tokens (B, N, in) → (B, N, out)."""

    def __init__(self, in_features: int, out_features: int, rank: int = 0):
        super().__init__()
        self.transform = StitchLinear(in_features, out_features, rank)

    def forward(self, x: Tensor) -> Tensor:
        return self.transform(x)


# -- the model --------------------------------------------------------------------------------------------------------
class _Stitched(Backbone):
    """What both versions share: anchors, the way that is set, drawing in training, costs."""

    two_way = True
    head_modules = ()
    classifier = "anchors.1.head"
    input_layers = ("anchors.0.patch_embed.proj", "anchors.1.patch_embed.proj")
    undecayed = r"(^|\.)(pos_embed|cls_token)$"
    optional_state = r"^anchors\.0\.head\."  # of another number of classes than the file's: begins anew
    dialects = (Dialect("timm", ((r"\.ls([12])\.gamma$", r".gamma_\1"),)),)

    def __init__(
        self,
        anchors: Sequence[Mapping[str, Any] | str | nn.Module],
        num_classes: int = 1000,
        in_chans: int = 3,
        lora_r: int = 0,
        stitch: int | None = None,
        drop_rate: float = 0.0,
    ):
        super().__init__(drop_rate)
        if len(anchors) != 2:
            raise OffprintError(f"two anchors are stitched, the smaller one first; {len(anchors)} were given")
        self.anchors = nn.ModuleList(_anchor(a, num_classes, in_chans) for a in anchors)
        small, large = self.small, self.large
        self._check(small, large)
        self.in_chans, self.num_classes, self.minimum = in_chans, num_classes, small.minimum
        self.stitches = stitch_configs((len(small.blocks), len(large.blocks)), self.two_way)
        widths = (small.num_features, large.num_features)
        self.stitch_layers = self._layers(widths, lora_r)
        self.lora_r = lora_r
        self.pyramid_channels = [widths[1]] * len(large.taps)
        self.pyramid_reductions = list(large.pyramid_reductions)
        self.pyramid_modules = [f"anchors.1.blocks.{i}" for i in large.taps]
        self.flops_gap: float | None = None
        self.flops_sampling_k = 0.0
        self.sampling = True
        self._groups: list[list[int]] | None = None
        self.set_stitch((1 if self.two_way else 0) if stitch is None else stitch)

    @property
    def small(self) -> DeiT3:
        return self.anchors[0]  # type: ignore[return-value]

    @property
    def large(self) -> DeiT3:
        return self.anchors[1]  # type: ignore[return-value]

    @staticmethod
    def _check(small: DeiT3, large: DeiT3) -> None:
        if small.num_features > large.num_features:
            raise OffprintError(
                f"the first anchor ({small.num_features} wide) is larger than the second ({large.num_features}); give the smaller one first"
            )
        patches = [a.patch_embed.patch_size for a in (small, large)]
        if patches[0] != patches[1] or small.grid != large.grid:
            raise OffprintError(
                f"the anchors see different tokens: patches of {patches[0]} and {patches[1]} pixels, grids of {small.grid} and {large.grid}; "
                "stitches need the same patch_size and img_size in both"
            )

    def _layers(self, widths: tuple[int, int], rank: int) -> nn.ModuleList:
        raise NotImplementedError

    def stitch_layer(self, leaving: int, index: int) -> Stitch:
        """The layer ``index`` behind the anchor ``leaving``."""
        raise NotImplementedError

    # -- which way ----------------------------------------------------------------------------------------------------
    def set_stitch(self, stitch: int) -> None:
        """Choose the way of the following calls in evaluation (in training too, where :attr:`sampling` is off).

        Raises:
            OffprintError: there is no such id.
        """
        if not isinstance(stitch, int) or not 0 <= stitch < len(self.stitches.paths):
            raise OffprintError(
                f"stitch {stitch!r} is none of the {len(self.stitches.paths)} of this model (0 to {len(self.stitches.paths) - 1})"
            )
        self.stitch = stitch
        if self.out_indices is None:
            self.num_features = self._anchor_at_end(stitch).num_features
        self._remember(stitch=stitch)

    def _anchor_at_end(self, stitch: int) -> DeiT3:
        return self.anchors[self.stitches.paths[stitch][-1].anchor]  # type: ignore[return-value]

    def macs(self, stitch: int, img_size: int | Sequence[int] | None = None) -> int:
        """Multiply-adds of a stitch for one picture: convolution, linear layers and attention products; low-rank changes as folded."""
        size = self.small.grid if img_size is None else self.small.map_size(*self._sides(img_size))
        patches = size[0] * size[1]
        tokens, path = patches + 1, self.stitches.paths[stitch]
        first, last = self.anchors[path[0].anchor], self.anchors[path[-1].anchor]
        total = patches * first.patch_embed.proj.weight.numel()  # type: ignore[union-attr, operator]
        for part in path:
            for block in self.anchors[part.anchor].blocks[part.first : part.last + 1]:  # type: ignore[union-attr, index]
                dim = block.attn.proj.in_features
                total += tokens * (4 * dim * dim + 2 * dim * block.mlp.fc1.out_features) + 2 * tokens * tokens * dim
            if part.stitch >= 0:
                total += tokens * self.stitch_layer(part.anchor, part.stitch).transform.weight.numel()
        return int(total + (last.head.weight.numel() if self.num_classes else 0))  # type: ignore[union-attr, operator]

    def table(self, img_size: int | Sequence[int] | None = None) -> list[dict[str, Any]]:
        """The stitches in use, cheapest first: id, kind, billions of multiply-adds, and the way."""
        words = ("small", "large")
        rows = [
            {
                "stitch": i,
                "kind": self.stitches.kind(i),
                "gmacs": self.macs(i, img_size) / 1e9,
                "way": " → ".join(
                    f"{words[s.anchor]} {s.first}–{s.last}" for s in self.stitches.paths[i] if s.first <= s.last
                )
                + (" → large" if self.stitches.paths[i][-1].first > self.stitches.paths[i][-1].last else ""),
            }
            for i in self.stitches.used
        ]
        return sorted(rows, key=lambda row: row["gmacs"])

    def choose(self, gmacs: float, accuracy: Mapping[int, float] | None = None) -> int:
        """Set the best stitch of at most so many billion multiply-adds: the most accurate where that was measured, else the dearest.

        Returns:
            Its id.

        Raises:
            OffprintError: all of them cost more.
        """
        fitting = [row for row in self.table() if row["gmacs"] <= gmacs]
        if not fitting:
            raise OffprintError(
                f"no stitch costs at most {gmacs} billion multiply-adds; the cheapest has {self.table()[0]['gmacs']:.4g}"
            )
        best = max(fitting, key=lambda row: ((accuracy or {}).get(row["stitch"], -1.0), row["gmacs"]))["stitch"]
        self.set_stitch(best)
        return best

    def groups(self) -> list[list[int]]:
        """The stitches in use in groups of like cost, as they are drawn; :attr:`flops_gap` wide."""
        if self._groups is None:
            costs = {i: self.macs(i) for i in self.stitches.used}
            span = (max(costs.values()) - min(costs.values())) / 1e9
            self._groups = group_by_flops(costs, min(1.0, span / 12) if self.flops_gap is None else self.flops_gap)
        return self._groups

    def draw(self) -> int:
        """A stitch to train: version 2 draws a group of like cost, then one of it; version 1 any."""
        if not self.two_way:
            return self.stitches.used[int(torch.randint(len(self.stitches.used), ()))]
        groups = self.groups()
        odds = torch.tensor(group_probabilities(len(groups), self.flops_sampling_k))
        group = groups[int(torch.multinomial(odds, 1))]
        return group[int(torch.randint(len(group), ()))]

    # -- forward ------------------------------------------------------------------------------------------------------
    def _forward(self, x: Tensor):
        if not (self.training and self.sampling):
            return super()._forward(x)
        held = self.stitch
        self.stitch = self.draw()
        try:
            return super()._forward(x)
        finally:
            self.stitch = held

    def walk(self, x: Tensor) -> Iterator[Tokens]:  # type: ignore[override]
        """The tokens of the anchor in which the pass is, once it is as deep as each map of the large anchor; those of the last block last."""
        path, taps, due = self.stitches.paths[self.stitch], self.large.taps, 0
        ratio = len(self.large.blocks) // len(self.small.blocks)
        x, grid = self.anchors[path[0].anchor].embed(x)  # type: ignore[operator]
        for part in path:
            blocks = self.anchors[part.anchor].blocks
            for i in range(part.first, part.last + 1):
                x = self.run([blocks[i]], x)  # type: ignore[index]
                depth = i if part.anchor else (i + 1) * ratio - 1
                while due < len(taps) - 1 and depth >= taps[due]:
                    yield self._at(x, grid, part.anchor, i)
                    due += 1
            if part.stitch >= 0:
                x = self.stitch_layer(part.anchor, part.stitch)(x)
        yield self._at(x, grid, path[-1].anchor, max(part.last, 0))

    @staticmethod
    def _at(x: Tensor, grid: tuple[int, int], anchor: int, block: int) -> Any:
        return Tokens(x, grid), anchor, block

    def finish(self, x: Any) -> Tensor:
        tokens, anchor, _ = x
        return self.anchors[anchor].norm(tokens.x)  # type: ignore[operator]

    def tap(self, x: Any, index: int, norm: bool = False) -> Tensor:
        """A map of the large anchor's width: what the small one gives is lifted by its stitching layer (Sec. 3.4)."""
        tokens, anchor, block = x
        if anchor == 0:
            tokens = Tokens(self.stitch_layer(0, block)(tokens.x), tokens.grid)
        return tokens.map

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = x[:, 0] if self.global_pool else x
        if pre_logits or not self.num_classes:
            return x
        if self.drop_rate:
            x = F.dropout(x, self.drop_rate, self.training)
        return self._anchor_at_end(self.stitch).head(x)

    # -- the interface ------------------------------------------------------------------------------------------------
    def _behead(self) -> None:
        for anchor in self.anchors:
            for name in ("norm", "head"):
                if hasattr(anchor, name):
                    delattr(anchor, name)
        self.num_classes, self.num_features, self.whole = 0, self.pyramid_channels[-1], False

    def prune_intermediate_layers(self, *args: Any, **kwargs: Any) -> list[int]:
        raise OffprintError("a stitched model keeps all its ways; extract(stitch) gives the network of one")

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        for anchor in self.anchors:
            anchor.reset_classifier(num_classes)  # type: ignore[operator]
        self.num_classes = num_classes
        if global_pool is not None:
            if num_classes and not global_pool:
                raise OffprintError(
                    "global_pool='' gives a map, which no classifier reads; reset it with num_classes=0"
                )
            self.global_pool = global_pool

    def depth_groups(self) -> list[list[str]]:
        """By depth in the large anchor: the small one's blocks, and the stitching layers behind them, lie with those they stand for."""
        ratio, groups = len(self.large.blocks) // len(self.small.blocks), []
        for i in range(len(self.large.blocks)):
            groups.append([f"anchors.1.blocks.{i}"])
            if (i + 1) % ratio == 0:
                j = i // ratio
                groups[-1] += [f"anchors.0.blocks.{j}", *self._layer_names(j)]
        stem = [f"anchors.{a}.{n}" for a in (0, 1) for n in ("cls_token", "pos_embed", "patch_embed")]
        return [stem, *groups]

    def _layer_names(self, index: int) -> list[str]:
        raise NotImplementedError

    def set_input_size(self, img_size: int | Sequence[int]) -> None:
        for anchor in self.anchors:
            anchor.set_input_size(img_size)  # type: ignore[operator]
        self._groups = None
        self._remember(anchors=self.spec_of_anchors())

    def map_size(self, height: int, width: int) -> tuple[int, int]:
        return self.small.map_size(height, width)

    def spec_of_anchors(self) -> list[dict[str, Any]]:
        """Arguments that build anchors of these sizes."""
        return [_described(a) for a in self.anchors]  # type: ignore[arg-type]

    def adapt_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Positions of another image size are resampled; the small anchor's classifier of another size begins anew."""
        for i in (0, 1):
            state = adapt_positions(state, f"anchors.{i}.pos_embed", self.anchors[i])  # type: ignore[arg-type]
        head = state.get("anchors.0.head.weight")
        if head is not None and self.num_classes and len(head) != self.num_classes:
            state = {k: v for k, v in state.items() if not k.startswith("anchors.0.head.")}
        return state

    # -- joining and parting ------------------------------------------------------------------------------------------
    @torch.no_grad()
    def fit_stitches(self, images: Tensor, progress: Any = None) -> int:
        """Start all stitching layers at the least-squares maps between the anchors' features on these images.

        Args:
            images: (B, C, H, W), as the anchors expect them; the authors take 100 training images.
            progress: called with ``total=`` once and with ``text=`` per layer.

        Returns:
            How many layers were set.
        """
        held = self.training
        self.eval()
        features = [_block_outputs(a, images) for a in self.anchors]  # type: ignore[arg-type]
        self.train(held)
        jobs = {
            (a.anchor, a.stitch): (features[a.anchor][a.last], features[b.anchor][b.first - 1])
            for path in self.stitches.paths for a, b in zip(path[:-1], path[1:], strict=True)
        }  # fmt: skip
        if progress:
            progress(total=len(jobs))
        for (anchor, index), (front, back) in jobs.items():
            layer = self.stitch_layer(anchor, index).transform
            weight, bias = least_squares_stitch(front, back)
            layer.weight.copy_(weight)
            layer.bias.copy_(bias)
            if progress:
                progress(text=f"{'small to large' if anchor == 0 else 'large to small'} {index}")
        return len(jobs)

    def extract(self, stitch: int) -> _Stitched:
        """A copy that holds one way only: what the others need is taken out, so that neither anchor is whole in memory."""
        out = copy.deepcopy(self)
        out.set_stitch(stitch)
        out.sampling = False
        path = out.stitches.paths[stitch]
        kept = {(s.anchor, i) for s in path for i in range(s.first, s.last + 1)}
        layers = {(s.anchor, s.stitch) for s in path if s.stitch >= 0}
        for a, anchor in enumerate(out.anchors):
            for i in range(len(anchor.blocks)):  # type: ignore[arg-type]
                if (a, i) not in kept:
                    anchor.blocks[i] = nn.Identity()  # type: ignore[operator, index]
            if a != path[0].anchor:
                anchor.patch_embed = nn.Identity()
                anchor.pos_embed = anchor.cls_token = None  # type: ignore[assignment]
            if a != path[-1].anchor and out.whole:
                anchor.norm, anchor.head = nn.Identity(), nn.Identity()
        for a, count in enumerate(out.stitches.layers):
            for i in range(count):
                if (a, i) not in layers and (out.whole or a):
                    out._drop_layer(a, i)
        return out

    def _drop_layer(self, leaving: int, index: int) -> None:
        raise NotImplementedError


class SNNet(_Stitched):
    """Version 1 (Pan, Cai, Zhuang; CVPR 2023): from small to large only, id 0 the large anchor alone, whole weights trained.

    Args:
        anchors: the smaller transformer and the larger one: arguments of :class:`~offprint.models.backbones.deit3.DeiT3`, a name, or the
            model itself.
        num_classes, in_chans, drop_rate: as for any backbone.
        stitch: the way in evaluation.
    """

    two_way = False

    def __init__(
        self,
        anchors: Sequence[Mapping[str, Any] | str | nn.Module],
        num_classes: int = 1000,
        in_chans: int = 3,
        stitch: int | None = None,
        drop_rate: float = 0.0,
    ):
        super().__init__(anchors, num_classes, in_chans, 0, stitch, drop_rate)

    def _layers(self, widths: tuple[int, int], rank: int) -> nn.ModuleList:
        return nn.ModuleList(Stitch(*widths, rank) for _ in range(self.stitches.layers[0]))

    def stitch_layer(self, leaving: int, index: int) -> Stitch:
        return self.stitch_layers[index]  # type: ignore[return-value]

    def _layer_names(self, index: int) -> list[str]:
        return [f"stitch_layers.{index}"]

    def _drop_layer(self, leaving: int, index: int) -> None:
        self.stitch_layers[index] = nn.Identity()


class SNNetV2(_Stitched):
    """Version 2: both ways, there and back, low-rank stitching layers, drawing balanced over cost.

    Args:
        anchors: the smaller transformer and the larger one: arguments of :class:`~offprint.models.backbones.deit3.DeiT3`, a name, or the
            model itself.
        num_classes, in_chans, drop_rate: as for any backbone.
        lora_r: rank of the trained change of a stitch; 0 trains its whole weight.
        stitch: the way in evaluation; default 1, the large anchor alone.

    Attributes:
        flops_gap: width of a group of like cost in billions of multiply-adds; by default the authors' 1.0, or a twelfth of the range of
            costs where that is less (their dense tasks take 10).
        flops_sampling_k: above 0, dearer groups are drawn more often.
        sampling: whether a step of training draws its stitch, or takes the one that is set.
    """

    def __init__(
        self,
        anchors: Sequence[Mapping[str, Any] | str | nn.Module],
        num_classes: int = 1000,
        in_chans: int = 3,
        lora_r: int = 64,
        stitch: int | None = None,
        drop_rate: float = 0.0,
    ):
        super().__init__(anchors, num_classes, in_chans, lora_r, stitch, drop_rate)

    def _layers(self, widths: tuple[int, int], rank: int) -> nn.ModuleList:
        sides = (widths, widths[::-1])
        return nn.ModuleList(
            nn.ModuleList(Stitch(*side, rank) for _ in range(count))
            for side, count in zip(sides, self.stitches.layers, strict=True)
        )

    def stitch_layer(self, leaving: int, index: int) -> Stitch:
        return self.stitch_layers[leaving][index]  # type: ignore[index, return-value]

    def _layer_names(self, index: int) -> list[str]:
        return [f"stitch_layers.{a}.{index}" for a, count in enumerate(self.stitches.layers) if index < count]

    def _drop_layer(self, leaving: int, index: int) -> None:
        self.stitch_layers[leaving][index] = nn.Identity()  # type: ignore[operator]


def _anchor(given: Any, num_classes: int, in_chans: int) -> DeiT3:
    if isinstance(given, DeiT3):
        if given.num_classes != num_classes:
            given.reset_classifier(num_classes)
        return given
    if isinstance(given, str):
        if given not in DEIT3:
            raise OffprintError(
                f"{given!r} is no plain transformer that can be stitched; choose two of {', '.join(DEIT3)}"
            )
        given = DEIT3[given]
    if isinstance(given, nn.Module):
        raise OffprintError(
            f"{type(given).__name__} is no plain transformer; two DeiT3 models can be stitched ({', '.join(DEIT3)})"
        )
    return DeiT3(**{**given, "num_classes": num_classes, "in_chans": in_chans})


def _described(anchor: DeiT3) -> dict[str, Any]:
    """Arguments that build an anchor of this size."""
    block, patch = anchor.blocks[0], anchor.patch_embed.patch_size
    return {
        "img_size": [anchor.grid[0] * patch, anchor.grid[1] * patch],
        "patch_size": patch,
        "embed_dim": anchor.norm.normalized_shape[0] if hasattr(anchor, "norm") else anchor.num_features,
        "depth": len(anchor.blocks),
        "num_heads": block.attn.num_heads,  # type: ignore[union-attr]
        "mlp_ratio": block.mlp.fc1.out_features / block.mlp.fc1.in_features,  # type: ignore[union-attr, operator]
        "drop_path_rate": block.drop_path.p,  # type: ignore[union-attr]
    }  # fmt: skip


def _block_outputs(anchor: DeiT3, images: Tensor) -> list[Tensor]:
    x, out = anchor.embed(images).x, []
    for block in anchor.blocks:
        x = block(x)
        out.append(x)
    return out


def _pair(small: str, large: str, rates: tuple[float, float]) -> list[dict[str, Any]]:
    return [
        {**DEIT3[f"deit3_{n}_patch16_224"], "drop_path_rate": r} for n, r in zip((small, large), rates, strict=True)
    ]


VARIANTS = {
    "snnetv2_deit3_s_b": {"anchors": _pair("small", "base", (0.05, 0.15))},
    "snnetv2_deit3_s_l": {"anchors": _pair("small", "large", (0.05, 0.4))},
    "snnetv2_deit3_b_l": {"anchors": _pair("base", "large", (0.15, 0.4))},
}
_FILE = "https://github.com/ziplab/SN-Netv2/releases/download/v1.0/{}.pth"
RECIPE = {
    "optimizer": "lamb", "lr": 3e-5, "weight_decay": 0.02, "epochs": 50, "batch_size": 512, "warmup_epochs": 5,
    "warmup_lr": 1e-7, "min_lr": 1e-6, "auto_augment": "three", "color_jitter": 0.3, "crop_scale": (), "cutmix": 1.0,
    "label_smoothing": 0.1, "crop_pct": 1.0, "data": "ImageNet-1K, from two pretrained anchors",
}  # fmt: skip

register(
    paper="sn-net-v2",
    kind="stitched",
    build=SNNetV2,
    task="classification",
    variants={**VARIANTS, "snnetv2": {"anchors": VARIANTS["snnetv2_deit3_s_b"]["anchors"]}},
    recipe=RECIPE,
    weights={
        name: {
            "authors": Weights(
                _FILE.format(name), "authors", "authors", "Apache-2.0",
                metrics=top(86.98) if name.endswith("s_l") else {},
                metrics_source="ziplab/SN-Netv2 results/stitches_res_s_l.txt, id 1" if name.endswith("s_l") else "",
                preprocessing={"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), "interpolation": "bicubic",
                               "crop_pct": 1.0, "crop_mode": "center"},
            )
        }
        for name in VARIANTS
    },
)  # fmt: skip
register(
    paper="sn-net-v2",
    kind="stitched",
    build=SNNet,
    task="classification",
    variants={"snnetv1": {"anchors": VARIANTS["snnetv2_deit3_s_b"]["anchors"]}},
    recipe=RECIPE,
)
