"""GPUs by name, and the measured runs that stand for them."""

import pytest

from bedplate.errors import InputError
from bedplate.train.accelerators import ACCELERATORS, ANCHORS, find_accelerator, nearest_anchor


@pytest.mark.parametrize("name", ["h100", "H100", "A100_40GB", "RTX 4090"])
def test_names_are_taken_as_people_write_them(name: str) -> None:
    assert find_accelerator(name).name.replace(" ", "").lower().find(name.lower()[:4].strip()) > 0


def test_an_unknown_name_has_a_neighbour() -> None:
    with pytest.raises(InputError, match=r"GPU 'h10' is not known; did you mean 'h100'\? Known are b200, .* and cpu"):
        find_accelerator("h10")


def test_a_run_on_this_gpu_goes_before_one_on_another() -> None:
    a100 = find_accelerator("a100")
    anchor, own = nearest_anchor(a100, True, 768)
    assert own and anchor.gpu == "a100"
    anchor, own = nearest_anchor(a100, False, 768)  # none was found without compilation
    assert not own and anchor.gpu == "h100" and not anchor.compiled


def test_the_run_of_the_nearest_width_is_taken() -> None:
    widths = {
        hidden: nearest_anchor(find_accelerator("h100"), True, hidden)[0].hidden_size for hidden in (128, 1024, 8192)
    }
    assert widths == {128: 768, 1024: 768, 8192: 4096}


def test_every_figure_says_where_it_is_from() -> None:
    assert all(each.source and 0 < each.watts <= 1000 and each.memory >= 24e9 for each in ACCELERATORS.values())
    assert all(anchor.gpu in ACCELERATORS and 0 < anchor.efficiency < 1 and anchor.run for anchor in ANCHORS)
