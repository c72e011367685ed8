"""Kunlun: ranking models that read event histories, with a scaling law you can plan with."""

__version__ = "0.1.0"
