"""Figures and pages made from what other commands wrote; knows no other room."""
