"""Which batches a run passes over, and what follows from a bad step."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagjax.config import TrainingConfig
from stagjax.training.recovery import BadStep, Judge, SkippedBatches


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 12)), max_size=8))
def test_after_any_rollbacks_no_batch_is_read_twice_and_only_those_undone_are_missing(rollbacks):
    skipped, read = SkippedBatches(), []
    done, newest = 0, -1
    for back_to, steps in rollbacks:
        while done < back_to + steps:
            read.append(skipped.batch(done))
            done += 1
        # Sometimes behind an earlier checkpoint, as where the newest is damaged.
        checkpoint = min(back_to, done - 1)
        skipped = skipped.since(checkpoint, done)
        undone, read = read[checkpoint:], read[:checkpoint]
        newest = max(newest, undone[-1])
        done = checkpoint
        assert [skipped.batch(step) for step in range(done)] == read
    later = [skipped.batch(step) for step in range(done, done + 50)]
    assert later == list(range(later[0], later[0] + 50))
    assert later[0] == max(newest + 1, done)
    assert skipped.total == later[0] - done
    assert SkippedBatches.from_metadata([list(pair) for pair in skipped.ranges]) == skipped


def metrics(loss=2.0, norm=1.0, spike=0.0, skipped=0.0, in_a_row=0.0):
    return {"loss": loss, "gradient_norm": norm, "spike": spike, "skipped": skipped, "skipped_in_a_row": in_a_row}


NAN = float("nan")


@pytest.mark.parametrize("policy", ["stop", "rollback"])
@pytest.mark.parametrize("values", [{"loss": NAN}, {"norm": float("inf")}])
def test_what_is_not_finite_raises_with_its_policy(policy, values):
    judge = Judge(TrainingConfig(nonfinite=policy, spikes="skip"))
    with pytest.raises(BadStep, match=r"step 7: .*(nan|inf).*\(not finite\)") as caught:
        judge.check_step(7, metrics(**values))
    assert (caught.value.step, caught.value.policy) == (7, policy)


def test_a_spike_raises_with_its_own_policy_and_a_good_step_says_nothing():
    judge = Judge(TrainingConfig(nonfinite="skip", spikes="rollback"))
    assert judge.check_step(7, metrics()) is None
    with pytest.raises(BadStep, match=r"step 7: loss 9, gradient norm 1 \(a spike\)") as caught:
        judge.check_step(7, metrics(9.0, spike=1.0))
    assert caught.value.policy == "rollback"


def test_skips_are_told_of_until_there_are_too_many_in_a_row():
    judge = Judge(TrainingConfig(nonfinite="skip", max_recoveries=3))
    said = judge.check_step(7, metrics(NAN, skipped=8.0, in_a_row=3.0))
    assert said == "step 7: loss nan, gradient norm 1 (not finite): its update is skipped, 3 in a row, 8 in all"
    with pytest.raises(BadStep, match="after 3 skipped ones in a row") as caught:
        judge.check_step(8, metrics(NAN, skipped=9.0, in_a_row=4.0))
    assert caught.value.policy == "stop"


@pytest.mark.parametrize(("policy", "follows"), [("stop", "stop"), ("skip", "stop"), ("rollback", "rollback")])
def test_lost_parameters_cannot_be_skipped(policy, follows):
    judge = Judge(TrainingConfig(nonfinite=policy))
    judge.check_validation(8, 2.0)
    with pytest.raises(BadStep, match="step 8: validation loss nan") as caught:
        judge.check_validation(8, NAN)
    assert caught.value.policy == follows
