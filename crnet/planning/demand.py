"""What each job of a study computes and holds, predicted before anything is run. Imports no torch."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import PurePath

from crnet.config import resolve
from crnet.config.resolve import Plan, Spec
from crnet.config.study import Layout
from crnet.cost import memory
from crnet.cost.memory import Need
from crnet.planning import stages
from crnet.planning.disk import DataSet, store_bytes
from crnet.planning.makespan import Job
from crnet.planning.stages import Stage


class Demand:
    """Of the jobs that use a network: features, train, tune, evaluate and finetune.

    Attributes:
        specs: Job -> its specification.
    """

    def __init__(self, plan: Plan, layout: Layout, data: Sequence[DataSet]):
        self.plan, self.limits = plan, plan.study.limits.values()
        self._data = {resolve.dataset_name(each.spec): each for each in data}
        features = {PurePath(layout.features_folder(spec)).name: spec for spec in plan.features.values()}
        self.specs: dict[Job, Spec] = {("features", name): spec for name, spec in features.items()}
        self.specs |= {("train", name): spec for name, spec in plan.trainings.items()}
        self.specs |= {("tune", name): spec for name, spec in plan.tunings.items()}
        for name, spec in plan.evaluations.items():
            self.specs["finetune" if "finetune" in spec else "evaluate", name] = spec

    def _of(self, job: Job) -> DataSet:
        return self._data[resolve.dataset_name(dataset_of(self.specs[job]))]

    def stages(self, job: Job) -> list[Stage] | None:
        """What it computes; None where that is not known before the data are prepared, or of its method."""
        spec, data = self.specs[job], self._of(job)
        if job[0] == "features":
            return stages.features(spec, data)
        if job[0] == "train":
            return stages.training(spec, data)
        count = stages.tuning if job[0] == "tune" else stages.evaluation
        return count(spec, data, self.limits, self.plan.caches_test_photos)

    def memory(self, job: Job) -> Need:
        """What it holds at most."""
        spec, data = self.specs[job], self._of(job)
        if job[0] == "features":
            return memory.features(spec, self.limits, store_bytes(spec, data) or 0)
        if job[0] == "train":
            stored = resolve.features_spec(spec)
            return memory.training(spec, self.limits, store_bytes(stored, data, reader=spec) or 0 if stored else 0)
        stored = resolve.test_features_specs(spec) if self.plan.caches_test_photos else []
        need = memory.evaluation(spec, self.limits, stages.named_photos(spec, data), bool(stored))
        return replace(need, mapped=sum(store_bytes(each, data) or 0 for each in stored))


def dataset_of(spec: Spec) -> Spec:
    """Of features, a training, trials or an evaluation."""
    return spec["dataset"] if "dataset" in spec else spec["train"]["dataset"]
