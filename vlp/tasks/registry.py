"""All tasks by the `name` in their config."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from vlp.tasks.classify import ClassifyConfig, ClassifyTask
from vlp.tasks.pretrain import PretrainConfig, PretrainTask
from vlp.tasks.retrieval import RetrievalConfig, RetrievalTask
from vlp.tasks.task import Setting, Task
from vlp.tasks.vqa import VqaConfig, VqaTask

TASKS = ("pretrain", "vqa", "retrieval", "classify")
"""Names of all tasks."""

AnyTaskConfig = Annotated[PretrainConfig | VqaConfig | RetrievalConfig | ClassifyConfig, Field(discriminator="name")]


def make_task(config: AnyTaskConfig, setting: Setting) -> Task:
    """The task of a config; raises ConfigError if model or shards cannot serve it."""
    match config:
        case PretrainConfig():
            return PretrainTask(config, setting)
        case VqaConfig():
            return VqaTask(config, setting)
        case RetrievalConfig():
            return RetrievalTask(config, setting)
        case ClassifyConfig():
            return ClassifyTask(config, setting)
