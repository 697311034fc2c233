r"""A Generative Self-Supervised Framework using Functional Connectivity in fMRI Data (Choi, Keum, Yun, Kim, Lee; NeurIPS 2023
workshop on Temporal Graph Learning; arXiv 2312.01994), on the encoder of STAGIN (Kim, Ye, Kim; NeurIPS 2021).

A scan is a sequence of brain graphs. Over windows :math:`t` of a BOLD series the regions' Pearson correlations :math:`C_t` are
taken, and the strongest 30 % of the entries are the edges :math:`A_t`. A region enters as its identity beside an embedding of
the time so far, and a graph isomorphism network passes messages (:math:`A_t` holds the self loops):

.. math::
    H_t^{(0)} = [\mathbf 1 \,\|\, \eta(t)] W, \qquad
    H_t^{(k+1)} = \mathrm{MLP}\big(A_t H_t^{(k)} + \varepsilon H_t^{(k)}\big).

**Pre-training without labels** (:class:`SpatioTemporalMAE`) rebuilds what was hidden. In space: some regions' inputs are replaced
by a learnt token and some edges are dropped; from :math:`H_t` decoders rebuild the hidden rows of :math:`C_t` and the whole
:math:`A_t`. In time: from an earlier and a later window, :math:`[H_a \| H_b]`, they rebuild a window :math:`t` between them.

.. math::
    L = \lambda (L_{node} + L_{edge})_{space} + (1 - \lambda) (L_{node} + L_{edge})_{time}, \qquad
    L_{edge} = \mathrm{BCE}\big(\sigma(Z Z^\top), A_t\big)

**Fine-tuning** (:class:`STAGIN`) reads regions out with attention, passes windows through a transformer, and sums the logits of
all layers.

What is the authors' and what is ours: no code of the paper is public. The graphs and the encoder are held to STAGIN's. The
pre-training follows the paper's idea; its shares, widths, balance, the rows of C as node target, the choice of windows, and that
a token replaces the projected input row, are this library's decisions, so figures made with it are this library's own.
"""

from __future__ import annotations

import inspect
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offprint.errors import OffprintError, unknown
from offprint.models.registry import register
from offprint.nn.connectivity import adjacency, dynamic_fc, threshold, window_correlations, window_starts

__all__ = ["GARO", "GIN", "SERO", "STAGIN", "BrainEncoder", "MAEOutput", "MeanReadout", "STAGINOutput", "SpatioTemporalMAE",
           "TemporalTransformer", "TimestampEncoder", "adjacency", "dynamic_fc", "edge_loss", "node_loss", "orthogonality",
           "threshold", "window_correlations", "window_starts"]  # fmt: skip


class TimestampEncoder(nn.Module):
    """η(t): the state of a GRU over the series from its first frame, read at the last frame of each window."""

    def __init__(self, num_regions: int, hidden_dim: int):
        super().__init__()
        self.rnn = nn.GRU(num_regions, hidden_dim)

    def forward(self, series: Tensor, ends: Tensor) -> Tensor:
        """Series (B, T, N) and the frames after each window (B, W) to (B, W, H)."""
        states, _ = self.rnn(series.transpose(0, 1))
        return states[ends - 1, torch.arange(len(series), device=series.device)[:, None]]


class GIN(nn.Module):
    """Graph isomorphism layer with sum aggregation; batch norm over all rows (sample, window, region)."""

    def __init__(self, dim: int):
        super().__init__()
        self.epsilon = nn.Parameter(torch.zeros(1, 1))
        self.mlp = nn.Sequential(
            nn.Linear(dim, dim), nn.BatchNorm1d(dim), nn.ReLU(), nn.Linear(dim, dim), nn.BatchNorm1d(dim), nn.ReLU()
        )

    def forward(self, h: Tensor, graphs: Tensor) -> Tensor:
        """(G, N, H) and (G, N, N) to (G, N, H). Three entries in ten are edges: a dense product is faster than a sparse one."""
        return self.mlp(torch.baddbmm(self.epsilon * h, graphs.to(h.dtype), h).flatten(0, 1)).view_as(h)


class BrainEncoder(nn.Module):
    """Series to region embeddings per window: the part that is pre-trained.

    Args:
        num_regions: N.
        hidden_dim: H.
        num_layers: GIN layers.
        sparsity: share of the matrix entries that become edges, in percent.
        window, stride: in frames.
        length: frames used of a scan; ``None`` for all.
    """

    native = "stagin"
    # of fine-tuned files, and of whole pre-training files
    optional_state = r"^(readout_modules|transformer_modules|linear_layers|token_parameter|mask_token|(node|edge)_decoder|temporal)\b"

    def __init__(
        self,
        num_regions: int,
        hidden_dim: int = 128,
        num_layers: int = 4,
        sparsity: float = 30,
        window: int = 50,
        stride: int = 3,
        length: int | None = 600,
    ):
        super().__init__()
        if not 0 < sparsity < 100:
            raise OffprintError(f"sparsity={sparsity}; give the percentage of entries that become edges, e.g. 30")
        self.num_regions, self.hidden_dim, self.num_layers = num_regions, hidden_dim, num_layers
        self.sparsity, self.window, self.stride, self.length = sparsity, window, stride, length
        self.timestamp_encoder = TimestampEncoder(num_regions, hidden_dim)
        self.initial_linear = nn.Linear(num_regions + hidden_dim, hidden_dim)
        self.gnn_layers = nn.ModuleList(GIN(hidden_dim) for _ in range(num_layers))

    def check_input(self, series: Tensor) -> None:
        """Refuse series of another shape, and values that are not finite."""
        if series.ndim != 3 or series.shape[2] != self.num_regions:
            raise OffprintError(
                f"expected series of shape (batch, frames, {self.num_regions}), got {tuple(series.shape)}; "
                "build the model with num_regions= of your parcellation"
            )
        if series.device.type != "meta" and not torch.isfinite(series).all():
            raise OffprintError(
                "the series hold values that are not finite; see offprint.data.brain_series.open_series"
            )

    def example_input(self, batch: int = 1) -> Tensor:
        """Normal random series of a length the model takes."""
        reference = self.initial_linear.weight
        frames = (self.length or 3 * self.window) + 1
        x = torch.randn(batch, frames, self.num_regions, generator=torch.Generator().manual_seed(0))
        return x.to(reference.device, reference.dtype)

    def place(self, series: Tensor, start: int | Tensor = 0, whole: bool = False) -> tuple[Tensor, Tensor]:
        """The series up to the end of the last window, and the windows' first frames (B, W).

        Args:
            series: (B, T, N).
            start: first frame of the part used, one for all scans or (B,).
            whole: use all frames whatever ``length`` says.
        """
        if not torch.compiler.is_compiling():
            self.check_input(series)
        firsts, length = [start] if isinstance(start, int) else start.tolist(), None if whole else self.length
        rows = [window_starts(series.shape[1], self.window, self.stride, length, int(s)) for s in firsts]
        last = max(row[-1] for row in rows) + self.window
        return series[:, :last], torch.tensor(rows, device=series.device).expand(len(series), -1)

    def node_input(self, series: Tensor, starts: Tensor) -> Tensor:
        """H(0) (B, W, N, H): the one-hot part of the input picks a column of the weight, η(t) is the same for all regions."""
        eta = self.timestamp_encoder(series, starts + self.window)
        identity, time = self.initial_linear.weight.split([self.num_regions, self.hidden_dim], 1)
        return F.linear(eta, time, self.initial_linear.bias)[:, :, None] + identity.t()

    def graphs(self, series: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
        """Correlations and adjacency, both (B, W, N, N)."""
        fc = window_correlations(series, starts, self.window)
        return fc, adjacency(fc, self.sparsity)

    def propagate(self, h: Tensor, graphs: Tensor) -> list[Tensor]:
        """The output (B, W, N, H) of every layer."""
        shape, h, graphs, out = h.shape, h.flatten(0, 1), graphs.flatten(0, 1), []
        for layer in self.gnn_layers:
            h = layer(h, graphs)
            out.append(h.view(shape))
        return out

    def encode(self, series: Tensor, start: int | Tensor = 0, whole: bool = False) -> list[Tensor]:
        """Region embeddings (B, W, N, H) after every layer."""
        series, starts = self.place(series, start, whole)
        return self.propagate(self.node_input(series, starts), self.graphs(series, starts)[1])

    def forward(self, series: Tensor, start: int | Tensor = 0, whole: bool = False) -> Tensor:
        """One vector per scan (B, layers * H): every layer's mean over windows and regions. Use it in eval mode."""
        return torch.cat([h.mean((1, 2)) for h in self.encode(series, start, whole)], -1)


class MeanReadout(nn.Module):
    """All regions alike."""

    def forward(self, h: Tensor) -> tuple[Tensor, Tensor]:
        return h.mean(2), h.new_ones(h.shape[:3])


class SERO(nn.Module):
    """Squeeze-excitation readout: one weight per region from the mean region."""

    def __init__(self, dim: int, num_regions: int, dropout: float = 0.1):
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(dim, dim), nn.BatchNorm1d(dim), nn.GELU())
        self.attend = nn.Linear(dim, num_regions)
        self.dropout = nn.Dropout(dropout)

    def forward(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """(B, W, N, H) to (B, W, H) and the weights (B, W, N)."""
        mean = h.mean(2)
        if self.training and len(mean) * mean.shape[1] < 2:
            raise OffprintError(
                "one window of one scan is too little for SERO's batch norm; use more scans or windows per step"
            )
        a = torch.sigmoid(self.attend(self.embed(mean.flatten(0, 1)))).view(h.shape[:3])
        return _weighted(h, self.dropout(a)), a


class GARO(nn.Module):
    """Graph-attention readout: the mean region asks, every region answers."""

    def __init__(self, dim: int, dropout: float = 0.1):
        super().__init__()
        self.embed_query, self.embed_key = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """(B, W, N, H) to (B, W, H) and the weights (B, W, N)."""
        query = self.embed_query(h.mean(2))[..., None]
        a = torch.sigmoid((self.embed_key(h) @ query).squeeze(-1) / h.shape[-1] ** 0.5)
        return _weighted(h, self.dropout(a)), a


def _weighted(h: Tensor, a: Tensor) -> Tensor:
    """Mean over regions of a * h, as one product."""
    return (a[..., None, :] @ h).squeeze(-2) / h.shape[2]


class TemporalTransformer(nn.Module):
    """Attention over windows without a skip around it, then an MLP with one."""

    def __init__(self, dim: int, num_heads: int, dropout: float = 0.1):
        super().__init__()
        self.multihead_attn = nn.MultiheadAttention(dim, num_heads)
        self.layer_norm1, self.layer_norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.dropout1, self.dropout2 = nn.Dropout(dropout), nn.Dropout(dropout)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.ReLU(), nn.Dropout(dropout), nn.Linear(2 * dim, dim))

    def forward(self, x: Tensor, need_weights: bool) -> tuple[Tensor, Tensor | None]:
        """(W, B, H) to (W, B, H) and the attention (B, W, W), mean over heads."""
        x, weights = self.multihead_attn(x, x, x, need_weights=need_weights)
        x = self.layer_norm1(self.dropout1(x))
        return self.layer_norm2(x + self.dropout2(self.mlp(x))), weights


class STAGINOutput(NamedTuple):
    """``logit`` (B, classes), ``latent`` (B, layers, H), ``orthogonality`` (scalar, to be weighted into the loss),
    ``time_attention`` (B, layers, W, W), ``node_attention`` (B, layers, W, N)."""

    logit: Tensor
    latent: Tensor
    orthogonality: Tensor
    time_attention: Tensor
    node_attention: Tensor


READOUTS = ("mean", "sero", "garo")
POOLS = ("sum", "mean", "param")


class STAGIN(BrainEncoder):
    """Classifier or regressor of scans.

    Args:
        num_regions, hidden_dim, num_layers, sparsity, window, stride, length: of :class:`BrainEncoder`.
        num_classes: outputs; 0 gives the latent vectors (B, layers * H) instead of logits.
        num_heads: of the temporal attention.
        readout: over regions: ``mean``, ``sero``, ``garo``.
        cls_token: over windows: ``sum``, ``mean``, or ``param`` for a learnt last token.
        dropout: before the logits.

    Input: series (B, T, N), standardised over time per region. Output of ``forward``: logits (B, classes).
    """

    classifier = "linear_layers"

    def __init__(
        self,
        num_regions: int,
        hidden_dim: int = 128,
        num_layers: int = 4,
        num_heads: int = 1,
        num_classes: int = 2,
        readout: str = "sero",
        cls_token: str = "sum",
        sparsity: float = 30,
        window: int = 50,
        stride: int = 3,
        length: int | None = 600,
        dropout: float = 0.5,
    ):
        super().__init__(num_regions, hidden_dim, num_layers, sparsity, window, stride, length)
        self.optional_state = ""
        for name, value, known in (("readout", readout, READOUTS), ("cls_token", cls_token, POOLS)):
            if value not in known:
                raise unknown(name, value, known)
        self.num_classes, self.cls_token = num_classes, cls_token
        make = {"mean": MeanReadout, "sero": lambda: SERO(hidden_dim, num_regions), "garo": lambda: GARO(hidden_dim)}
        self.readout_modules = nn.ModuleList(make[readout]() for _ in range(num_layers))
        self.transformer_modules = nn.ModuleList(TemporalTransformer(hidden_dim, num_heads) for _ in range(num_layers))
        self.linear_layers = nn.ModuleList(
            nn.Linear(hidden_dim, num_classes) for _ in range(num_layers if num_classes else 0)
        )
        self.dropout = nn.Dropout(dropout)
        if cls_token == "param":
            self.token_parameter = nn.Parameter(torch.randn(num_layers, 1, 1, hidden_dim))

    def _read(self, layers: list[Tensor], need_weights: bool) -> tuple[Tensor, list, list]:
        """Latent vectors (B, layers, H) and both attentions of every layer."""
        latent, over_time, over_regions = [], [], []
        for i, h in enumerate(layers):
            x, regions = self.readout_modules[i](h)
            x = x.transpose(0, 1)
            if self.cls_token == "param":
                x = torch.cat([x, self.token_parameter[i].expand(-1, x.shape[1], -1).to(x.dtype)])
            x, times = self.transformer_modules[i](x, need_weights)
            latent.append(x[-1] if self.cls_token == "param" else x.sum(0) if self.cls_token == "sum" else x.mean(0))
            over_time.append(times)
            over_regions.append(regions)
        return torch.stack(latent, 1), over_time, over_regions

    def classify(self, latent: Tensor) -> Tensor:
        """Latent vectors (B, layers, H) to logits."""
        if not self.num_classes:
            return latent.flatten(1)
        return torch.stack([self.dropout(f(latent[:, i])) for i, f in enumerate(self.linear_layers)]).sum(0)

    def forward(self, series: Tensor, start: int | Tensor = 0, whole: bool = False) -> Tensor:
        """Logits (B, classes); ``start`` and ``whole`` as in :meth:`BrainEncoder.place`."""
        return self.classify(self._read(self.encode(series, start, whole), False)[0])

    def details(self, series: Tensor, start: int | Tensor = 0, whole: bool = False) -> STAGINOutput:
        """Logits with the orthogonality term and the attention over regions and time."""
        layers = self.encode(series, start, whole)
        latent, over_time, over_regions = self._read(layers, True)
        return STAGINOutput(
            self.classify(latent), latent, sum(map(orthogonality, layers)),
            torch.stack(over_time, 1), torch.stack(over_regions, 1),
        )  # fmt: skip


def orthogonality(h: Tensor) -> Tensor:
    """How far regions are from being told apart: mean Frobenius norm of the upper triangle of h hᵀ / row maximum - I."""
    h = h.flatten(0, 1)
    inner = h @ h.mT
    inner = inner / inner.amax(-1, keepdim=True).clamp_min(torch.finfo(h.dtype).tiny)
    inner.diagonal(dim1=-2, dim2=-1).sub_(1.0)
    return torch.linalg.matrix_norm(inner.triu()).mean()


NODE_LOSSES = ("mse", "sce")


def node_loss(prediction: Tensor, target: Tensor, kind: str = "mse", alpha: float = 2.0) -> Tensor:
    """Error of rebuilt node rows (R, D): mean squared error, or GraphMAE's scaled cosine error, mean of (1 - cos)^alpha."""
    if kind == "mse":
        return F.mse_loss(prediction, target)
    return (1.0 - F.cosine_similarity(prediction, target, -1)).pow(alpha).mean()


def edge_loss(z: Tensor, graphs: Tensor) -> Tensor:
    """Binary cross entropy of sigmoid(Z Zᵀ), Z (..., N, D), against the adjacency (..., N, N), mean over all entries."""
    return F.binary_cross_entropy_with_logits(z @ z.mT, graphs.to(z.dtype))


class MAEOutput(NamedTuple):
    """``loss`` and its four parts."""

    loss: Tensor
    spatial_node: Tensor
    spatial_edge: Tensor
    temporal_node: Tensor
    temporal_edge: Tensor


class SpatioTemporalMAE(nn.Module):
    """Pre-training by rebuilding hidden regions, edges and windows (the file's first words say what of it is ours).

    A hidden region's row of correlations is a target and never an input. Its edges still show what is thresholded of it, where
    they are not dropped, and η(t) has heard all regions up to its window's end, though not through the hidden region's own row.

    Args:
        num_windows: drawn from each scan per step (fewer when it has fewer).
        mask_ratio, drop_ratio: share of regions replaced by the token, and of edges dropped.
        balance: λ, the weight of space against time.
        loss: of the nodes: ``mse``, or ``sce`` with exponent ``alpha``.
        **encoder: arguments of the :class:`BrainEncoder` that is trained, ``num_regions`` among them.
    """

    native = "offprint"

    def __init__(
        self,
        *,
        num_windows: int = 16,
        mask_ratio: float = 0.3,
        drop_ratio: float = 0.3,
        balance: float = 0.5,
        loss: str = "mse",
        alpha: float = 2.0,
        **encoder: Any,
    ):
        super().__init__()
        known = inspect.signature(BrainEncoder).parameters
        for name in encoder:
            if name not in known:
                raise unknown(
                    "argument of SpatioTemporalMAE", name, [*inspect.signature(type(self)).parameters, *known]
                )
        for name, value in (("mask_ratio", mask_ratio), ("drop_ratio", drop_ratio), ("balance", balance)):
            if not 0 <= value <= 1:
                raise OffprintError(f"{name}={value}; it is a share between 0 and 1")
        if num_windows < 3:
            raise OffprintError(f"num_windows={num_windows}; rebuilding a window between two others needs at least 3")
        if loss not in NODE_LOSSES:
            raise unknown("node loss", loss, NODE_LOSSES)
        self.num_windows, self.mask_ratio, self.drop_ratio = num_windows, mask_ratio, drop_ratio
        self.balance, self.loss, self.alpha = balance, loss, alpha
        self.encoder = BrainEncoder(**encoder)
        dim = self.encoder.hidden_dim
        self.mask_token = nn.Parameter(nn.init.trunc_normal_(torch.zeros(dim), std=0.02))
        self.node_decoder = _mlp(dim, self.encoder.num_regions)
        self.edge_decoder = _mlp(dim, dim)
        self.temporal = nn.Linear(2 * dim, dim)

    def hide(self, graphs: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Draw what is hidden in graphs (B, W, N, N).

        Returns:
            Hidden regions (B, W, N), True where the token goes (at least one per window), and the graphs without the dropped
            edges: both directions of a pair go together, self loops stay.
        """
        shape, n = graphs.shape[:3], graphs.shape[2]
        order = torch.rand(shape, generator=generator).to(graphs.device).argsort(-1).argsort(-1)
        pairs = torch.rand(graphs.shape, generator=generator).to(graphs.device) < self.drop_ratio
        dropped = pairs.triu(1)
        return order < max(1, round(self.mask_ratio * n)), graphs.masked_fill(dropped | dropped.mT, 0.0)

    def hidden_input(self, series: Tensor, starts: Tensor, hidden: Tensor) -> Tensor:
        """H(0) (B, W, N, H) with the token in the place of hidden regions: neither identity nor time is left of them."""
        h = self.encoder.node_input(series, starts)
        return torch.where(hidden[..., None], self.mask_token.to(h.dtype), h)

    def forward(
        self, series: Tensor, start: int | Tensor = 0, whole: bool = False, generator: torch.Generator | None = None
    ) -> MAEOutput:
        """Losses of one draw of windows, hidden regions and dropped edges.

        Args:
            series: (B, T, N).
            start, whole: as in :meth:`BrainEncoder.place`.
            generator: of the draw (CPU); default the global one.
        """
        series, starts = self.encoder.place(series, start, whole)
        starts = self._draw_windows(starts, generator)
        fc, graphs = self.encoder.graphs(series, starts)
        hidden, kept = self.hide(graphs, generator)
        h = self.encoder.propagate(self.hidden_input(series, starts, hidden), kept)[-1]
        spatial_node = node_loss(self.node_decoder(h[hidden]), fc[hidden], self.loss, self.alpha)
        spatial_edge = edge_loss(self.edge_decoder(h), graphs)
        # every window that has an earlier and a later one is rebuilt from two such, which hold nothing of its graph
        batch, count = starts.shape
        t = torch.arange(1, count - 1, device=h.device)
        u, v = torch.rand(2, batch, count - 2, generator=generator).to(h.device)
        a, b = (u * t).long(), t + 1 + (v * (count - 1 - t)).long()
        rows = torch.arange(batch, device=h.device)[:, None]
        between = self.temporal(torch.cat([h[rows, a], h[rows, b]], -1))
        inner = slice(1, count - 1)
        rebuilt = self.node_decoder(between).flatten(0, 2)
        temporal_node = node_loss(rebuilt, fc[:, inner].flatten(0, 2), self.loss, self.alpha)
        temporal_edge = edge_loss(self.edge_decoder(between), graphs[:, inner])
        spatial, temporal = spatial_node + spatial_edge, temporal_node + temporal_edge
        loss = self.balance * spatial + (1 - self.balance) * temporal
        return MAEOutput(loss, spatial_node, spatial_edge, temporal_node, temporal_edge)

    def _draw_windows(self, starts: Tensor, generator: torch.Generator | None) -> Tensor:
        """``num_windows`` of each scan's windows, in order of time."""
        batch, count = starts.shape
        if count < 3:
            raise OffprintError(
                f"{count} windows of {self.encoder.window} frames were found; pre-training needs at least 3: "
                "choose a smaller window or stride"
            )
        if count <= self.num_windows:
            return starts
        drawn = torch.rand(batch, count, generator=generator).argsort(-1)[:, : self.num_windows].sort(-1).values
        return starts.gather(1, drawn.to(starts.device))


def _mlp(dim: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, out))


# STAGIN's recipe; the paper's own for pre-training is not known, and the same is used
RECIPE = {
    "lr": 5e-4,
    "max_lr": 1e-3,
    "rise": 0.2,
    "final_div": 1000.0,
    "epochs": 30,
    "batch_size": 3,
    "orthogonality": 1e-5,
}
VARIANTS: dict[str, dict] = {
    "stagin": {"num_regions": 400},
    "stagin_sero_n32": {"num_regions": 32, "hidden_dim": 64},
    "stagin_garo_n20": {"num_regions": 20, "hidden_dim": 32, "num_layers": 2, "num_heads": 2, "num_classes": 3, "readout": "garo"},
}  # fmt: skip
register(
    paper="fmri-ssl", kind="graph", task="connectivity", build=STAGIN, variants=VARIANTS, input_size=None, recipe=RECIPE
)
register(paper="fmri-ssl", kind="graph", task="connectivity-pretraining", build=SpatioTemporalMAE, variants={"brain_mae": {"num_regions": 400}},
         input_size=None, recipe=RECIPE)  # fmt: skip
