"""From instances to knowledge: metrics and pictures."""

from maskwright.evaluation.detection import DetectionMetrics, default_limits, detect, evaluate_detections
from maskwright.evaluation.drawing import contact_sheet, draw_instances

__all__ = ["DetectionMetrics", "contact_sheet", "default_limits", "detect", "draw_instances", "evaluate_detections"]
