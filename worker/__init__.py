"""The workers' side of the Label dataset migrator: tasks, stories, steps, bytes and rows."""

from importlib.metadata import version

__version__ = version("label-dataset-migrator")
