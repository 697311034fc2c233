"""Data sets and transforms: thin faces on torchvision and torch_geometric, and the bundled samples."""
