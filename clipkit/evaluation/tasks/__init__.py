"""The kinds of tasks of a suite, one a file; a new kind is a file and a line here."""

from clipkit.evaluation.tasks.compositional import CompositionalTask
from clipkit.evaluation.tasks.corruptions import CorruptionsTask
from clipkit.evaluation.tasks.geometry import GeometryTask
from clipkit.evaluation.tasks.knn import KnnTask
from clipkit.evaluation.tasks.linear_probe import LinearProbeTask
from clipkit.evaluation.tasks.retrieval import RetrievalTask
from clipkit.evaluation.tasks.task import Task
from clipkit.evaluation.tasks.zero_shot import ZeroShotTask

KINDS: dict[str, type[Task]] = {
    kind.kind: kind
    for kind in (
        ZeroShotTask,
        RetrievalTask,
        LinearProbeTask,
        KnnTask,
        CompositionalTask,
        CorruptionsTask,
        GeometryTask,
    )
}
