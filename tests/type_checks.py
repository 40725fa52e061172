"""The run-time type checker of the tests: beartype with the numeric tower of PEP 484, where an int is a float."""

from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
