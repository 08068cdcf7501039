import torch
from hypothesis import given
from hypothesis import strategies as st

from vlp.data.packing import join, pack

lengths = st.lists(st.integers(0, 6), max_size=6)


@given(lengths)
def test_packed_rows_are_where_a_padded_layout_has_them(lengths: list[int]) -> None:
    packing = pack(lengths)
    assert len(packing) == len(lengths)
    assert packing.tokens == sum(lengths)
    assert packing.longest == max(lengths, default=0)
    assert packing.starts_B1.tolist() == [sum(lengths[:number]) for number in range(len(lengths) + 1)]
    expected = [row * packing.longest + place for row, length in enumerate(lengths) for place in range(length)]
    assert packing.rows_N.tolist() == expected
    if packing.valid_BL is None:
        assert packing.tokens == len(lengths) * packing.longest
    else:
        assert packing.valid_BL.flatten().nonzero().flatten().tolist() == expected


def test_a_padded_layout_has_a_mask_and_a_full_one_has_none() -> None:
    assert pack([2, 2]).valid_BL is None
    assert pack([]).valid_BL is None
    ragged = pack([1, 2]).valid_BL
    assert ragged is not None
    assert ragged.tolist() == [[True, False], [True, True]]


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), max_size=5))
def test_join_puts_each_text_before_its_image(pairs: list[tuple[int, int]]) -> None:
    text, image = pack([t for t, _ in pairs]), pack([i for _, i in pairs])
    joint, joint_rows_J, split_rows_J = join(text, image)
    assert joint.lengths == tuple(t + i for t, i in pairs)
    names = [(b, "t", k) for b, (t, _) in enumerate(pairs) for k in range(t)]
    names += [(b, "i", k) for b, (_, i) in enumerate(pairs) for k in range(i)]
    expected = [
        (b, stream, k)
        for b, (t, i) in enumerate(pairs)
        for stream, length in (("t", t), ("i", i))
        for k in range(length)
    ]
    assert [names[row] for row in joint_rows_J.tolist()] == expected
    assert torch.equal(joint_rows_J[split_rows_J], torch.arange(len(names)))
