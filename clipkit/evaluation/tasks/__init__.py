"""The kinds of tasks of a suite, one a file; a new kind is a file and a line here."""

from clipkit.evaluation.tasks.retrieval import RetrievalTask
from clipkit.evaluation.tasks.task import Task
from clipkit.evaluation.tasks.zero_shot import ZeroShotTask

KINDS: dict[str, type[Task]] = {
    kind.kind: kind
    for kind in (
        ZeroShotTask,
        RetrievalTask,
    )
}
