"""What people look at: tables, plots, pictures, pages."""

from maskwright.reports.drawing import contact_sheet, draw_instances

__all__ = ["contact_sheet", "draw_instances"]
