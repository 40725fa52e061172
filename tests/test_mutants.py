"""The lines that `make mutants` breaks are still there."""

import pathlib

import pytest

from tests.mutants import MUTANTS, ROOT


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_every_mutant_has_one_place(mutant):
    assert (ROOT / mutant.path).read_text().count(mutant.before) == 1 and mutant.before not in mutant.after
    assert all((ROOT / pathlib.Path(test)).is_file() for test in mutant.tests.split())


def test_names_are_unique_and_there_are_enough():
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) >= 30
