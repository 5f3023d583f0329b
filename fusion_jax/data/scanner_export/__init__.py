"""From a scanner export to a cohort: what a folder of DICOM holds, and the series of every case by rules."""

from fusion_jax.data.scanner_export.assemble import (
    case_columns,
    chosen_rows,
    inventory_rows,
    open_rows,
    source_tables,
)
from fusion_jax.data.scanner_export.inventory import Inventory, Series, inventory
from fusion_jax.data.scanner_export.rules import IdMap, Rule, Subject, parted_patients, read_id_map, read_rules
from fusion_jax.data.scanner_export.selection import Choice, Open, Selection, select_series

__all__ = [
    "Choice",
    "IdMap",
    "Inventory",
    "Open",
    "Rule",
    "Selection",
    "Series",
    "Subject",
    "case_columns",
    "chosen_rows",
    "inventory",
    "inventory_rows",
    "open_rows",
    "parted_patients",
    "read_id_map",
    "read_rules",
    "select_series",
    "source_tables",
]
