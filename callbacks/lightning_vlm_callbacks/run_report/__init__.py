"""What a run logs, in one file as it goes and on one page at the end."""

from lightning_vlm_callbacks.run_report.callback import RunReport, record_event

__all__ = ["RunReport", "record_event"]
