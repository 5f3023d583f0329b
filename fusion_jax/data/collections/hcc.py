"""The HCC survival table of the University Hospital of Coimbra."""

from fusion_jax.data.cohort import Cohort
from fusion_jax.data.collections.files import bundled_bytes
from fusion_jax.data.collections.tables import by_role, clinical_source, read_cases

__all__ = ["hcc_survival"]

FILE = "hcc_survival_uci.csv.gz"
SHA256 = "be3a85204cb4bac2647b59d5cb6d1a82c3ee100761a0631bc142c001719dc9cd"
LABEL = "survived_1_year"
UNITS = {
    "age": "years",
    "grams_of_alcohol_per_day": "g/d",
    "packs_of_cigarets_per_year": "packs/year",
    "alpha_fetoprotein": "ng/ml",
    "haemoglobin": "g/dl",
    "mean_corpuscular_volume": "fl",
    # The source mixes G/l and cells per microlitre in these two.
    "leukocytes": "G/l or 1/µl",
    "platelets": "G/l or 1/µl",
    "albumin": "g/dl",
    "total_bilirubin": "mg/dl",
    "alanine_transaminase": "U/l",
    "aspartate_transaminase": "U/l",
    "gamma_glutamyl_transferase": "U/l",
    "alkaline_phosphatase": "U/l",
    "total_proteins": "g/dl",
    "creatinine": "mg/dl",
    "major_dimension_of_nodule_cm": "cm",
    "direct_bilirubin_mg_dl": "mg/dl",
    "iron": "µg/dl",
    "oxygen_saturation": "%",
    "ferritin": "ng/ml",
}


def hcc_survival() -> Cohort:
    """132 patients with hepatocellular carcinoma, 49 columns at diagnosis, survival of one year (82 of 132).

    A part of the 165 patients of the source; about a tenth of the cells is missing. Values are as published: leukocytes
    and platelets mix two units, and some other values are implausible (total proteins up to 102 g/dl).

    Example:
      >>> cohort = hcc_survival()
      >>> len(cohort), len(cohort.columns("input")), int(cohort.label.sum()), cohort.sources["clinical"].kind
      (132, 49, 82, 'table')

    References:
      Santos et al. 2015, doi:10.1016/j.jbi.2015.09.012; UCI Machine Learning Repository "HCC Survival", CC BY 4.0.
    """
    table = read_cases(bundled_bytes(FILE, SHA256), "case_id", (LABEL, *UNITS))
    roles = by_role(label=[LABEL], input=[column for column in table.columns if column != LABEL])
    clinical, known = clinical_source(table, roles)
    return Cohort.from_arrays(
        {"clinical": clinical}, table=table, roles=roles, name="hcc_survival", units=UNITS
    ).with_source("clinical", clinical, known)
