import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from bedplate.data.order import keys, permute

SEEDS = st.integers(-(2**63), 2**64)


@given(st.integers(1, 5000), SEEDS)
def test_a_permutation_of_any_size(size: int, seed: int) -> None:
    assert np.array_equal(np.sort(permute(np.arange(size), size, keys(seed))), np.arange(size))


@given(SEEDS, st.lists(st.integers(0, 10**12 - 1), min_size=1, max_size=20))
def test_an_element_does_not_depend_on_its_neighbours(seed: int, index: list[int]) -> None:
    together = permute(np.array(index), 10**12, keys(seed, np.arange(len(index))))
    alone = [permute(np.array([i]), 10**12, keys(seed, np.array([n])))[0] for n, i in enumerate(index)]
    assert together.tolist() == alone


def test_keys_choose_different_orders_that_look_random() -> None:
    size = 10_000
    orders = [permute(np.arange(size), size, keys(0, epoch)) for epoch in range(3)]
    for first, second in ((0, 1), (1, 2), (0, 2)):
        assert (orders[first] == orders[second]).sum() < 10  # 1 expected of random permutations
        assert abs(np.corrcoef(orders[first], orders[second])[0, 1]) < 0.05
    assert abs(np.corrcoef(orders[0][:-1], orders[0][1:])[0, 1]) < 0.05
    assert abs(np.corrcoef(orders[0], np.arange(size))[0, 1]) < 0.05
