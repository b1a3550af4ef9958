"""Bytes in hand: what is counted is what is unsettled, and no limit is passed by more than one."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tenantry.broker.budget import OWN, Account, Budget

EACH, TOTAL, LARGEST = 4 * OWN, 10 * OWN, 2 * OWN

steps = st.lists(
    st.tuples(
        st.integers(0, 3),
        st.sampled_from(["take", "take", "take", "settle", "settle one", "skip", "clear"]),
        st.integers(1, LARGEST),
    ),
    max_size=120,
)


@given(steps)
def test_what_is_in_hand_is_what_is_unsettled_and_limits_are_passed_by_one_message_at_most(
    steps: list[tuple[int, str, int]],
) -> None:
    budget = Budget(each=EACH, total=TOTAL)
    accounts = [Account(budget) for _ in range(4)]
    unsettled: list[dict[int, int]] = [{} for _ in accounts]
    tags = [0] * 4
    for who, step, size in steps:
        account, mine = accounts[who], unsettled[who]
        match step:
            case "take":
                fits = account.take(size)
                assert fits or account.in_hand >= EACH or budget.in_hand >= TOTAL
                if not fits:
                    assert account.in_hand + size > OWN
                    account.skip()
                tags[who] += 1
                if fits:
                    mine[tags[who]] = size
            case "skip":
                account.skip()
                tags[who] += 1
            case "settle" if mine:
                up_to = sorted(mine)[size % len(mine)]
                account.settle(up_to=up_to)
                unsettled[who] = {tag: size for tag, size in mine.items() if tag > up_to}
            case "settle one" if mine:
                tag = sorted(mine)[size % len(mine)]
                account.settle(acks=[tag])
                account.settle(rejects=[tag])
                del mine[tag]
            case "clear":
                account.clear()
                unsettled[who], tags[who] = {}, 0
        assert [one.in_hand for one in accounts] == [sum(mine.values()) for mine in unsettled]
        assert budget.in_hand == sum(one.in_hand for one in accounts)
        assert all(one.in_hand < EACH + LARGEST for one in accounts)
        # Beyond all together there is what is each one's own.
        assert budget.in_hand < TOTAL + LARGEST + 4 * OWN
