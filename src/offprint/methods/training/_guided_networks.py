"""The networks of guidance's experiments: targets that do not train well alone, and their guides."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from offprint.errors import OffprintError, unknown
from offprint.models.registry import register


# -- pictures ----------------------------------------------------------------------------------------------------------
class DeepFCN(nn.Module):
    """48 hidden layers: a wide one and 47 narrow ones, each Linear, BatchNorm, ReLU, dropout (B, C, H, W) → (B, classes).

    Args:
        image_size, in_chans: side and channels of the pictures.
        width, narrow, depth: of the first hidden layer, of the others, and how many others there are.
    """

    def __init__(
        self, num_classes: int = 1000, in_chans: int = 3, image_size: int = 224, width: int = 2048, narrow: int = 1024, depth: int = 47, drop: float = 0.1
    ):  # fmt: skip
        super().__init__()
        self.in_chans, self.num_classes = in_chans, num_classes

        def layer(a: int, b: int) -> nn.Sequential:
            return nn.Sequential(nn.Linear(a, b), nn.BatchNorm1d(b), nn.ReLU(), nn.Dropout(drop))

        self.initial_layer = layer(in_chans * image_size**2, width)
        self.intermediate_layers = nn.ModuleList(layer(width if i == 0 else narrow, narrow) for i in range(depth))
        self.output_layer = nn.Linear(narrow if depth else width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.initial_layer(x.flatten(1))
        for layer in self.intermediate_layers:
            x = layer(x)
        return self.output_layer(x)


class WideFCN(nn.Module):
    """Hidden layers of one width, with BatchNorm (the paper's wide network: 3 of 8192) or without (9 of 4096)."""

    def __init__(
        self, num_classes: int = 1000, in_chans: int = 3, image_size: int = 224, width: int = 8192, depth: int = 3, norm: bool = True
    ):  # fmt: skip
        super().__init__()
        self.in_chans, self.num_classes = in_chans, num_classes
        widths, layers = [in_chans * image_size**2, *[width] * depth], []
        for a, b in zip(widths[:-1], widths[1:], strict=True):
            layers += [nn.Linear(a, b), *([nn.BatchNorm1d(b)] if norm else []), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(width, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x.flatten(1))


class _NoShortcut(nn.Module):
    """ResNet-50's bottleneck, stride on the 3x3, without its shortcut."""

    def __init__(self, cin: int, width: int, stride: int):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(cin, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, 4 * width, 1, bias=False), nn.BatchNorm2d(4 * width)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        return F.relu(self.bn3(self.conv3(x)))


class NoResNet(nn.Module):
    """ResNet-50 with no shortcut anywhere; torchvision's names."""

    def __init__(
        self, num_classes: int = 1000, in_chans: int = 3, depths: tuple[int, ...] = (3, 4, 6, 3), width: int = 64
    ):
        super().__init__()
        self.in_chans, self.num_classes = in_chans, num_classes
        self.conv1, self.bn1 = nn.Conv2d(in_chans, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width)
        self.maxpool, cin = nn.MaxPool2d(3, 2, 1), width
        for stage, depth in enumerate(depths):
            w = width * 2**stage
            blocks = [_NoShortcut(cin if i == 0 else 4 * w, w, 2 if stage and i == 0 else 1) for i in range(depth)]
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
            cin = 4 * w
        self.stages, self.avgpool, self.fc = len(depths), nn.AdaptiveAvgPool2d(1), nn.Linear(cin, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(F.relu(self.bn1(self.conv1(x))))
        for stage in range(self.stages):
            x = getattr(self, f"layer{stage + 1}")(x)
        return self.fc(self.avgpool(x).flatten(1))


# -- language ----------------------------------------------------------------------------------------------------------
class RNNLM(nn.Module):
    """Stacked single-layer recurrences; each starts from the last state of the one below: ids (B, n) → logits (B, n, vocabulary).

    Args:
        cell: ``RNN`` (tanh) or ``LSTM``.
    """

    def __init__(
        self, vocab_size: int = 28996, embedding_dim: int = 256, hidden_dim: int = 512, num_layers: int = 4, cell: str = "RNN"
    ):  # fmt: skip
        super().__init__()
        if cell not in ("RNN", "LSTM"):
            raise unknown("cell", cell, ("RNN", "LSTM"))
        self.embedding = nn.Embedding(vocab_size, embedding_dim)
        kind = getattr(nn, cell)
        self.rnn = nn.ModuleList(
            kind(embedding_dim if i == 0 else hidden_dim, hidden_dim, batch_first=True) for i in range(num_layers)
        )
        self.fc1 = nn.Linear(hidden_dim, vocab_size)

    def forward(self, ids: Tensor) -> Tensor:
        x, state = self.embedding(ids), None
        for layer in self.rnn:
            x, state = layer(x, state)
        return self.fc1(x)


def _causal(n: int, like: Tensor) -> Tensor:
    return torch.ones(n, n, dtype=torch.bool, device=like.device).triu(1)


class TransformerLM(nn.Module):
    """Blocks whose residual starts from the *normed* state, no norm at the end: ids (B, n) → logits (B, n, vocabulary).

    Inside, the sequence is the first axis, as the maps of its layers show.
    """

    def __init__(
        self, vocab_size: int = 28996, d_model: int = 512, nhead: int = 16, num_layers: int = 4, seq_len: int = 256, dim_feedforward: int = 2048,
        dropout: float = 0.1,
    ):  # fmt: skip
        super().__init__()
        self.tokens_embeddings, self.position_embeddings = (
            nn.Embedding(vocab_size, d_model),
            nn.Embedding(seq_len, d_model),
        )
        self.dropout, layers = nn.Dropout(dropout), range(num_layers)
        self.attentions = nn.ModuleList(nn.MultiheadAttention(d_model, nhead, dropout) for _ in layers)
        self.feed_forwards = nn.ModuleList(
            nn.Sequential(nn.Linear(d_model, dim_feedforward), nn.ReLU(), nn.Linear(dim_feedforward, d_model))
            for _ in layers
        )
        self.layer_norms_1 = nn.ModuleList(nn.LayerNorm(d_model, eps=1e-12) for _ in layers)
        self.layer_norms_2 = nn.ModuleList(nn.LayerNorm(d_model, eps=1e-12) for _ in layers)
        self.lm_head = nn.Linear(d_model, vocab_size)

    def forward(self, ids: Tensor) -> Tensor:
        n, most = ids.shape[1], self.position_embeddings.num_embeddings
        if n > most:
            raise OffprintError(f"{n} tokens were given; this model has positions for {most} (seq_len)")
        h = self.tokens_embeddings(ids) + self.position_embeddings.weight[:n]
        h, mask = self.dropout(h).transpose(0, 1), _causal(n, ids)
        for norm, attend, norm2, feed in zip(
            self.layer_norms_1, self.attentions, self.layer_norms_2, self.feed_forwards, strict=True
        ):
            h = norm(h)
            h = h + self.dropout(attend(h, h, h, attn_mask=mask, need_weights=False)[0])
            h = norm2(h)
            h = h + self.dropout(feed(h))
        return self.lm_head(h).transpose(0, 1)


class _Positions(nn.Module):
    """Adds sines and cosines of the position to (B, n, d)."""

    def __init__(self, d: int, length: int, dropout: float):
        super().__init__()
        angle = torch.arange(length)[:, None] * torch.exp(torch.arange(0, d, 2) * (-math.log(10000.0) / d))
        self.register_buffer("pe", torch.stack([angle.sin(), angle.cos()], -1).flatten(1)[:, :d], persistent=False)
        self.angle, self.dropout = angle, nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] > len(self.pe):
            raise OffprintError(f"{x.shape[1]} tokens were given; this model has positions for {len(self.pe)}")
        return self.dropout(x + self.pe[: x.shape[1]])


class CopyTransformer(nn.Module):
    """One decoder layer used ``num_layers`` times, which also attends to the embedded input without a mask: ids (B, n) → logits."""

    def __init__(
        self, vocab_size: int = 13, d_model: int = 512, nhead: int = 16, num_layers: int = 4, dim_feedforward: int = 512, dropout: float = 0.1,
        max_len: int = 5000,
    ):  # fmt: skip
        super().__init__()
        self.embed, self.pos_encoder = nn.Embedding(vocab_size, d_model), _Positions(d_model, max_len, dropout)
        layer = nn.TransformerDecoderLayer(d_model, nhead, dim_feedforward, dropout, batch_first=True)
        self.decoder = nn.ModuleList([layer] * num_layers)
        self.final_layer = nn.Linear(d_model, vocab_size)

    def forward(self, ids: Tensor) -> Tensor:
        h = self.pos_encoder(self.embed(ids) * math.sqrt(self.embed.embedding_dim))
        mask = _causal(ids.shape[1], ids)
        for layer in self.decoder:
            h = layer(h, h, tgt_mask=mask)
        return self.final_layer(h)


class ParityTransformer(nn.Module):
    """One encoder layer used ``num_layers`` times, mean over the valid steps: bits (B, n), padded with 2 → logits (B, 2)."""

    def __init__(
        self, vocab_size: int = 3, d_model: int = 32, nhead: int = 4, num_layers: int = 2, dropout: float = 0.1, pad: int = 2, max_len: int = 5000
    ):  # fmt: skip
        super().__init__()
        self.pad, self.embed, self.pos_encoder = (
            pad,
            nn.Embedding(vocab_size, d_model),
            _Positions(d_model, max_len, dropout),
        )
        layer = nn.TransformerEncoderLayer(d_model, nhead, 2048, dropout, batch_first=True)
        self.encoder = nn.ModuleList([layer] * num_layers)
        self.final_layer = nn.Linear(d_model, 2)

    def forward(self, ids: Tensor) -> Tensor:
        h, empty = self.pos_encoder(self.embed(ids)), ids == self.pad
        for layer in self.encoder:
            h = layer(h, src_key_padding_mask=empty)
        valid = (~empty)[..., None]
        return self.final_layer((h * valid).sum(1) / valid.sum(1).clamp_min(1))


class ParityRNN(nn.Module):
    """Stacked tanh recurrence, packed by lengths; its last valid step is read: bits (B, n), padded with 2 → logits (B, 2)."""

    def __init__(self, vocab_size: int = 3, hidden_dim: int = 32, num_layers: int = 1, pad: int = 2):
        super().__init__()
        self.pad, self.embedding = pad, nn.Embedding(vocab_size, vocab_size)
        self.rnn = nn.RNN(vocab_size, hidden_dim, num_layers, batch_first=True)
        self.fc = nn.Linear(hidden_dim, 2)

    def forward(self, ids: Tensor) -> Tensor:
        lengths = (ids != self.pad).sum(1).clamp_min(1)
        packed = pack_padded_sequence(self.embedding(ids), lengths.cpu(), batch_first=True, enforce_sorted=False)
        steps, _ = pad_packed_sequence(self.rnn(packed)[0], batch_first=True)
        return self.fc(F.relu(steps[torch.arange(len(ids), device=ids.device), lengths - 1]))


_RECIPE = {"optimizer": "adam", "lr": 1e-3, "weight_decay": 0.0, "epochs": 100, "batch_size": 256, "schedule": "step", "decay_rate": 0.1,
           "decay_epochs": 30, "warmup_epochs": 0}  # fmt: skip
register(
    paper="guidance", kind="training", build=DeepFCN, variants={"deep_fcn": {}}, recipe=_RECIPE, task="classification"
)
register(paper="guidance", kind="training", build=WideFCN, recipe=_RECIPE, task="classification",
         variants={"wide_fcn": {}, "plain_fcn": {"width": 4096, "depth": 9, "norm": False}})  # fmt: skip
register(
    paper="guidance",
    kind="training",
    build=NoResNet,
    variants={"noresnet50": {}},
    recipe=_RECIPE,
    task="classification",
)
for _name, _build in (("rnn_lm", RNNLM), ("transformer_lm", TransformerLM), ("transformer", CopyTransformer),
                      ("trans_enc", ParityTransformer), ("parity_rnn", ParityRNN)):  # fmt: skip
    register(paper="guidance", kind="training", build=_build, variants={_name: {}}, input_size=None)
