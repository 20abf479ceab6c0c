"""Makes the tasks of the pipelines known to transformers, and the classes that they ask for."""

from . import auto  # noqa: F401
from .processing.pipeline_scmmgpt import register_pipelines

register_pipelines()
