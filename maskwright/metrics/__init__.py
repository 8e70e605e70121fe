"""Numbers: what detections are worth, and how sure that is."""

from maskwright.metrics.detection import DetectionMetrics, default_limits, detect, evaluate_detections

__all__ = ["DetectionMetrics", "default_limits", "detect", "evaluate_detections"]
