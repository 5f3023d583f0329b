"""Clinical factors before resection of a hepatocellular carcinoma: 17 to select from, seven as the nine bits.

    chosen = select(FACTORS, cohort.inputs, cohort.label, train_cases, fold="f0", patients=cohort.patient_id)
    fitted = fit(NINE_BITS, cohort.inputs, train_cases, fold="f0", units=cohort.units)
    values, names = fitted.apply(cohort.inputs, train_cases=train_cases)

Wang W. et al. 2020. Expected: on all 167 patients the seven factors of the nine bits have p < .05 without correction
(specs/hcc_fusion.md, section 6.2); in the vector c1 … c9 equality at a cut-off gives 1 and the BCLC stages 0, A, B, C
are 000, 001, 010, 100 (section 2.1). A missing value is an error: the paper mentions none (reading H10). The cut-off
of the N/L ratio is 2.8 as in the table, not the 2.81 of the text; bilirubin is in µmol/L.
"""

from fusion_jax.data.tabular import Category, Column, Cutoff, Flag

NINE_BITS: tuple[Column, ...] = (
    Cutoff(name="age_years", at=60, unit="years"),
    Cutoff(name="tumour_size_cm", at=5.0, unit="cm"),
    Flag(name="portal_vein_invasion", yes=("yes", 1), no=("no", 0)),
    Cutoff(name="neutrophil_lymphocyte_ratio", at=2.8),
    Cutoff(name="total_bilirubin_umol_l", at=20.5, unit="µmol/L", substance="bilirubin"),
    Cutoff(name="afp_ug_l", at=9, unit="µg/L"),
    # Outputs stand in the order of the levels: C is c7, the first bit of 100.
    Category(name="bclc", levels=("0", "C", "B", "A"), reference="0", unseen="error"),
)
"""The selected factors in the order of the published vector."""

# The paper prints counts of these and no cut-off; the values are common limits of the normal range.
FACTORS: tuple[Column, ...] = (
    *NINE_BITS,
    Flag(name="sex", yes=("male",), no=("female",)),
    Cutoff(name="tumour_number", at=2),
    Flag(name="cirrhosis", yes=("yes", 1), no=("no", 0)),
    Flag(name="hepatitis_b", yes=("yes", 1), no=("no", 0)),
    Cutoff(name="alt_u_l", at=50, unit="U/L"),
    Cutoff(name="ast_u_l", at=40, unit="U/L"),
    Cutoff(name="alkaline_phosphatase_u_l", at=125, unit="U/L"),
    Cutoff(name="ggt_u_l", at=60, unit="U/L"),
    Cutoff(name="albumin_g_l", at=35, unit="g/L"),
    Category(name="child_pugh", levels=("A", "B", "C")),
)
"""All 17 tested factors."""
