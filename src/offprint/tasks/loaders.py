"""Loaders of tasks whose samples are made at random: what an epoch holds follows from (seed, epoch) alone."""

from __future__ import annotations

import lightning as L
from torch.utils.data import DataLoader, Dataset, Subset

from offprint.data.images import EpochSampler, Seeded


class SeededLoaders(L.LightningDataModule):
    """Training samples in an order, and with an augmentation, that depend on (seed, epoch) alone; held-out ones dealt out to the processes.

    Args:
        train, val: sets of samples; ``train`` may draw from torch's generator.
        batch_size: training samples at once; a last smaller batch is dropped where a whole one came before it.
        workers: loader processes.
        seed: of the run.
        val_batch_size: held-out samples at once.
    """

    def __init__(self, train: Dataset, val: Dataset, batch_size: int, workers: int, seed: int, val_batch_size: int = 1):
        super().__init__()
        self.train, self.val = Seeded(train, seed), val
        self.batch_size, self.workers, self.seed, self.val_batch_size = batch_size, workers, seed, val_batch_size

    def train_dataloader(self) -> DataLoader:
        t = self.trainer
        sampler = EpochSampler(len(self.train), t.current_epoch, self.seed, t.global_rank, t.world_size)
        full = len(sampler) >= self.batch_size
        return DataLoader(self.train, self.batch_size, sampler=sampler, num_workers=self.workers, drop_last=full)

    def val_dataloader(self) -> DataLoader:
        mine = Subset(self.val, range(self.trainer.global_rank, len(self.val), self.trainer.world_size))  # type: ignore[arg-type]
        return DataLoader(mine, self.val_batch_size, num_workers=self.workers)
