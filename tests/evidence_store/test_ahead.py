# SPDX-License-Identifier: Apache-2.0
"""Results in order, a bounded number of them early."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from evidence_store.ahead import in_order


@pytest.fixture
def pool():
    with ThreadPoolExecutor(3) as made:
        yield made


def test_results_are_in_order(pool):
    slow = threading.Event()

    def work(n):
        if n == 0:
            slow.wait(5)
        else:
            slow.set()
        return n * n

    assert list(in_order(pool, work, range(20), ahead=4)) == [n * n for n in range(20)]


def test_nothing_to_do(pool):
    assert list(in_order(pool, str, [])) == []


def test_no_more_is_taken_than_may_be_ahead(pool):
    taken = []

    def things():
        for n in range(100):
            taken.append(n)
            yield n

    results = in_order(pool, str, things(), ahead=4)
    assert next(results) == "0"
    assert taken == [0, 1, 2, 3]
    assert list(results) == [str(n) for n in range(1, 100)]


def test_an_error_comes_at_its_place_and_ends_the_rest(pool):
    begun = []

    def work(n):
        begun.append(n)
        if n == 2:
            raise ValueError("two")
        return n

    results = in_order(pool, work, range(1000), ahead=8)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ValueError, match="two"):
        next(results)
    pool.shutdown(wait=True)
    assert max(begun) < 16


def test_what_has_not_begun_is_cancelled_when_the_taker_stops():
    gate, begun = threading.Event(), []

    def work(n):
        begun.append(n)
        if n:
            gate.wait(5)
        return n

    with ThreadPoolExecutor(1) as pool:
        results = in_order(pool, work, range(50), ahead=10)
        assert next(results) == 0
        results.close()
        gate.set()
    assert len(begun) <= 2
