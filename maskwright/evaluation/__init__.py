"""From instances to knowledge: metrics and pictures."""

from maskwright.evaluation.detection import DetectionMetrics, detect, evaluate_detections
from maskwright.evaluation.drawing import contact_sheet, draw_instances

__all__ = ["DetectionMetrics", "contact_sheet", "detect", "draw_instances", "evaluate_detections"]
