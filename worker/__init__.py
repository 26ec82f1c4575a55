"""The workers' side of the Label dataset migrator: tasks, jobs, bytes and rows."""

from importlib.metadata import version

__version__ = version("label-dataset-migrator")
