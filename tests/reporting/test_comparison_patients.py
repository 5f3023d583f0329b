"""A comparison says on whom: Table 1 by the outcome, the sources with their gaps, the flow of patients."""

import dataclasses

import pytest

from fusion_jax.data.definition import Dropped, Flow, Step
from fusion_jax.evaluation.protocol import Protocol
from fusion_jax.models.comparison import compare
from fusion_jax.reporting.comparison.patients import patients_section


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    few = Protocol(resamples=100, permutations=100)
    out = tmp_path_factory.mktemp("compared")
    return compare("hcc_survival", ["logistic-regression"], out=out, folds=2, protocol=few)


def test_patients_are_described_by_outcome_source_and_flow(found):
    tables = {}
    section = patients_section(found, tables)
    cohort = found.plan.cohort
    assert section.text[0] == f"{len(cohort)} cases of {len(cohort)} patients, sites unknown."
    assert tables["sources"].rows == [["clinical", "table", len(cohort), 0, "logistic-regression"]]
    table = tables["characteristics"]
    first = cohort.classes[0]
    count = int((cohort.label == 0).sum())
    assert f"{cohort.columns('label')[0]}: {first} (n = {count})" in table.columns
    assert all(len(row) == len(table.columns) for row in table.rows)
    assert any(str(row[0]).startswith(cohort.columns("input")[0]) for row in table.rows)

    dropped = Dropped("too young", ("P1",))
    flow = Flow((Step("screened", 166, 166), Step("cohort", 165, 165, (dropped,))))
    plan = dataclasses.replace(found.plan, cohort=dataclasses.replace(cohort, flow=flow))
    with_flow = patients_section(dataclasses.replace(found, plan=plan), {})
    assert len(with_flow.items) == len(section.items) + 1


def test_free_text_among_the_inputs_costs_the_table_and_not_the_report(found):
    cohort = found.plan.cohort
    column = cohort.columns("input")[0]
    table = cohort.table.assign(**{column: [f"told on day {row}" for row in range(len(cohort))]})
    plan = dataclasses.replace(found.plan, cohort=dataclasses.replace(cohort, table=table))
    tables = {}
    section = patients_section(dataclasses.replace(found, plan=plan), tables)
    assert "characteristics" not in tables
    assert any(column in line for line in section.text)
