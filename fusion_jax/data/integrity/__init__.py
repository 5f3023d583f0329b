"""The integrity report: what is missing, broken, doubled, leaking or implausible in a cohort."""

from fusion_jax.data.integrity.check import check_cohort
from fusion_jax.data.integrity.findings import CHECKS, Finding, Report

__all__ = ["CHECKS", "Finding", "Report", "check_cohort"]
