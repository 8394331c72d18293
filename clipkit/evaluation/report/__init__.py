"""What is on disk of runs → one page about them: how training went, how good the models are."""

from clipkit.evaluation.report.runs import read_metrics, split_name
from clipkit.evaluation.report.tables import metric_rows
from clipkit.evaluation.report.write import write_report

__all__ = ["metric_rows", "read_metrics", "split_name", "write_report"]
