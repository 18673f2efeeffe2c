"""What an edit will need, against what it may have."""

import pytest

from retouch.compute import Compute
from retouch.errors import OutOfBudget
from retouch.models.estimate import Estimate


def test_an_edit_that_does_not_fit_is_refused_with_the_numbers() -> None:
    Estimate(2**30).require(Compute(memory="1GB"))
    with pytest.raises(OutOfBudget, match=r"about 2\.0 GB of memory and 1\.0 GB may be used") as caught:
        Estimate(2**31).require(Compute(memory="1GB"))
    assert "--memory" in caught.value.hint
