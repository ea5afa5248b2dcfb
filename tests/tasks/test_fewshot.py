"""Draws of few-shot examples: one running generator, and the evaluated document never among its own examples."""

import random

import pytest

from stagjax.errors import UserError
from stagjax.tasks.fewshot import Sampler

POOL = [{"n": n} for n in range(20)]
OTHER = {"n": -1}


def test_one_generator_runs_over_all_documents():
    sampler, running = Sampler(POOL, 5, "any"), random.Random(1234)
    drawn = [sampler.draw(OTHER) for _ in range(4)]
    assert drawn == [running.sample(range(20), 5) for _ in range(4)]
    # As the harness draws them from 20 documents (ARC).
    assert drawn[:2] == [[14, 3, 0, 2, 1], [2, 3, 11, 7, 0]]


def test_one_more_is_drawn_and_the_evaluated_document_dropped():
    assert [Sampler(POOL, 1).draw(OTHER), Sampler(POOL, 1).draw(POOL[14])] == [[14], [3]]
    drawn = random.Random(1234).sample(range(20), 6)
    assert Sampler(POOL, 5).draw(POOL[drawn[2]]) == drawn[:2] + drawn[3:]
    assert Sampler(POOL, 5).draw(OTHER) == drawn[:5]


def test_without_the_rule_the_document_itself_can_be_drawn():
    assert Sampler(POOL, 1, "any").draw(POOL[14]) == [14]


def test_other_draws_go_on_after_the_extra_one():
    sampler = Sampler(POOL, 1)
    assert [sampler.draw(OTHER) for _ in range(5)] == [[14], [0], [18], [2], [11]]


def test_a_pool_of_copies_is_drawn_again_without_them():
    pool = [OTHER] * 12 + POOL[:2]
    sampler, running = Sampler(pool, 2), random.Random(1234)
    first = [position for position in running.sample(range(14), 3) if position > 11]
    assert len(first) < 2
    assert sampler.draw(OTHER) == running.sample([12, 13], 2)
    with pytest.raises(UserError, match="shots=2 needs as many examples other than the evaluated document"):
        Sampler([OTHER] * 3 + POOL[:1], 2).draw(OTHER)


def test_first_takes_the_first():
    assert Sampler(POOL[:3], 3, "first").draw(POOL[0]) == [0, 1, 2]


@pytest.mark.parametrize(
    ("shots", "draw", "message"),
    [
        (-1, "any", "shots=-1 is below 0"),
        (20, "other", "shots=20 needs 21 examples to draw from, and there are 20; use 19 or fewer"),
        (21, "any", "shots=21 needs 21 examples to draw from, and there are 20; use 20 or fewer"),
    ],
)
def test_too_many_shots_are_refused(shots, draw, message):
    with pytest.raises(UserError, match=message):
        Sampler(POOL, shots, draw)


def test_no_shots_draw_nothing_and_need_no_pool():
    assert Sampler((), 0).draw(OTHER) == []
