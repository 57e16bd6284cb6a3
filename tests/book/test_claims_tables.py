"""The tables of the claims on the results page are those of the package's results files."""

import claims_tables
import pytest

from densenet_tutorial.experiments import claims


@pytest.mark.parametrize("name", claims_tables.FILES)
def test_tables_are_made_from_the_results_files(name):
    stored = (claims_tables.TABLES / name).read_text(encoding="utf-8")
    again = claims_tables.text(claims_tables.FILES[name]())
    assert stored == again, "type `python book/_tools/claims_tables.py`"


def test_every_claim_has_its_line():
    _, *lines = claims_tables.verdicts()
    assert [line[0].split(":")[0] for line in lines] == list(claims.list_claims())
