"""Receive, analyse, deliver, review, report: the hospital's side of Phoi."""
