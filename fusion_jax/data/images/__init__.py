"""Preprocessing of images as pure functions, and the pipeline that a cohort file makes of them.

`intensity` changes values, `geometry` places, `slices` and `phases` make images of volumes and series; `operation` says
what an operation is, `pipeline` lists all of them by the name they have in a cohort file.
"""
