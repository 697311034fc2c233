"""A segmentation model, its recipe and its task in one file: what adding a paper of a new kind takes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import lightning as L
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from offprint.data.reading import read_picture
from offprint.models.factory import create_model
from offprint.models.registry import register
from offprint.tasks.contract import Ready, Task, register_task
from offprint.tasks.recipe import Recipe
from offprint.tasks.results import Figures, Result, sheet
from offprint.tasks.running import RecipeTask


class TinySegmenter(nn.Module):
    """Two convolutions, a class per pixel."""

    def __init__(self, width: int = 8, num_classes: int = 2):
        super().__init__()
        self.num_classes = num_classes
        self.layers = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, num_classes, 1))

    def forward(self, x):
        return self.layers(x)


register(
    paper="scse", kind="segmentation", task="throwaway-masks", build=TinySegmenter, variants={"tiny_segmenter": {}},
    input_size=(3, 16, 16), recipes={"training": {"lr": 0.05, "epochs": 2, "batch_size": 4, "weight_decay": 0.0}},
)  # fmt: skip


class Module(RecipeTask):
    def training_step(self, batch, batch_idx):
        loss = F.cross_entropy(self.model(batch[0]), batch[1])
        self.check_loss(loss)
        return loss

    def validation_step(self, batch, batch_idx):
        hit = (self.model(batch[0]).argmax(1) == batch[1]).float().mean()
        self.log("val_accuracy", hit, batch_size=len(batch[0]))


class Data(L.LightningDataModule):
    def __init__(self, x, y, size):
        super().__init__()
        self.set, self.batch_size = TensorDataset(x, y), size

    def train_dataloader(self):
        return DataLoader(self.set, self.batch_size)

    val_dataloader = train_dataloader


@dataclass
class Masks(Result):
    def draw(self, path):
        return sheet(path, [(np.array(r["mask"]), r["image"]) for r in self.rows])


class Throwaway(Task):
    name = "throwaway-masks"
    does = "segments pictures for a test"
    goal = "val_accuracy"

    def open(self, source, *, seed: int = 0, border: int = 0):
        """Open pictures and masks.

        Args:
            source: a folder with images/ and masks/.
            border: pixels left out at each side.
        """
        files = sorted((Path(source) / "images").glob("*.png"))
        cut = slice(border, -border or None)
        x = torch.stack([torch.tensor(np.array(read_picture(f)))[cut, cut].permute(2, 0, 1) / 255 for f in files])
        y = torch.stack(
            [torch.tensor(np.array(Image.open(Path(source) / "masks" / f.name)))[cut, cut].long() for f in files]
        )
        return x, y

    def build(self, job):
        return create_model(job.model, num_classes=int(job.data[1].max()) + 1, **job.model_options)

    def about(self, job):
        return {"classes": int(job.data[1].max()) + 1}

    def module(self, job):
        return Module(job.network, job.how, job.run.seed)

    def loaders(self, job):
        return Data(*job.data, job.how.batch_size)

    def finish(self, job, fitted):
        return {"accuracy": fitted.best}

    def ready(self, folder, about):
        model = create_model(
            about["model"], num_classes=about["classes"], checkpoint_path=str(folder / "model.safetensors")
        )
        return Ready(self, model.eval(), about["model"], about, folder)

    def evaluate(self, ready, data=None, *, border: int = 0, progress=None):
        x, y = self.open(ready.about["source"] if data is None else data, border=border)
        return Figures.of({"accuracy": float((ready.model(x).argmax(1) == y).float().mean())})

    def predict(self, ready, inputs, *, progress=None):
        rows = []
        for file in inputs:
            x = torch.tensor(np.array(read_picture(file))).permute(2, 0, 1)[None] / 255
            rows.append({"image": str(file), "mask": ready.model(x).argmax(1)[0].tolist()})
        return Masks(rows)


register_task(Throwaway())
assert Recipe.of("tiny_segmenter").epochs == 2
