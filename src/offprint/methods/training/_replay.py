"""The Lightning side of learning from soft labels, apart so that looking methods up does not import Lightning."""

from __future__ import annotations

from typing import Any

import lightning as L
from torch.utils.data import DataLoader

from offprint.methods.training._soft_labels import CropSampler, Replay, Visits


class ReplayData(L.LightningDataModule):
    """Training batches from soft labels; validation as it was."""

    def __init__(self, replay: Replay, before: Any, crops: int, epochs: int):
        super().__init__()
        self.replay, self.before, self.crops, self.epochs = replay, before, crops, epochs
        self.batch_size, self.seed, self.workers = before.batch_size, before.seed, before.workers

    def train_dataloader(self) -> DataLoader:
        trainer = self.trainer
        sampler = CropSampler(
            len(self.replay),
            trainer.current_epoch,
            self.epochs,
            self.crops,
            self.batch_size,
            self.seed,
            trainer.global_rank,
            trainer.world_size,
        )
        return DataLoader(Visits(self.replay, self.seed), batch_sampler=sampler, num_workers=self.workers)

    def val_dataloader(self) -> DataLoader:
        self.before.trainer = self.trainer
        return self.before.val_dataloader()
