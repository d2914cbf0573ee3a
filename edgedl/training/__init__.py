"""Built-in architectures and the training command."""

from edgedl.training.job import train_to

__all__ = ["train_to"]
