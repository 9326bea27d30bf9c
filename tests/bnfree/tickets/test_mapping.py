import pytest

from bnfree.errors import InputError
from bnfree.tickets.mapping import default_sources, format_mapping, parse_mapping

# Written out by hand from the rules of the paper.
STRETCHED = [
    ("append", 3, 5, "0:0;1:1,3;2:2,4"),
    ("interpolate", 3, 5, "0:0;1:1,2;2:3,4"),
    ("append", 5, 9, "0:0;1:1,5;2:2,6;3:3,7;4:4,8"),
    ("interpolate", 5, 9, "0:0;1:1,2;2:3,4;3:5,6;4:7,8"),
    ("append", 4, 6, "0:0;1:1,4;2:2,5;3:3"),
    ("interpolate", 4, 6, "0:0;1:1,2;2:3,4;3:5"),
    ("append", 2, 4, "0:0;1:1,2,3"),
    ("append", 1, 1, "0:0"),
    ("interpolate", 9, 5, "0:0;1:1;3:2;5:3;7:4"),
    ("append", 9, 5, "0:0;1:1;2:2;3:3;4:4"),
    ("interpolate", 3, 1, "0:0"),
]


def names(*counts):
    return [[f"body.{stage}.{block}" for block in range(count)] for stage, count in enumerate(counts)]


@pytest.mark.parametrize(("order", "count", "target_count", "text"), STRETCHED)
def test_the_orders_give_the_mappings_of_the_paper(order, count, target_count, text):
    sources = default_sources(count, target_count, order)
    assert format_mapping([sources]) == text
    assert parse_mapping(text, [count], names(target_count)) == [sources]


@pytest.mark.parametrize("order", ["append", "interpolate"])
def test_squeezing_takes_back_what_stretching_did(order):
    for count in range(1, 8):
        for larger in range(count, 20 if count > 1 else 2):
            stretched = default_sources(count, larger, order)
            kept = default_sources(larger, count, order)
            assert [stretched[block] for block in kept] == list(range(count))
            copies = [stretched.count(block) for block in range(1, count)]
            assert copies == sorted(copies, reverse=True)
            assert max(copies, default=1) - min(copies, default=1) <= 1


def test_one_part_serves_all_stages_or_each_has_its_own():
    both = [[0, 1, 1], [0, 1, 1]]
    assert parse_mapping("0:0;1:1,2", [2, 2], names(3, 3)) == both
    assert parse_mapping("0:0;1:1,2|0:0; 2:1", [2, 3], names(3, 2)) == [[0, 1, 1], [0, 2]]
    assert parse_mapping(format_mapping(both), [2, 2], names(3, 3)) == both


@pytest.mark.parametrize(
    ("mapping", "said"),
    [
        ("0:0;1:1", "leaves 'body.0.2' uncovered"),
        ("0:0;1:1,2;2:2", "fills 'body.0.2' twice"),
        ("0:0,1;1:2", "fills 'body.0.1' from block 0; the first block of a stage goes to the first place"),
        ("0:1;1:0,2", "fills 'body.0.0' from block 1; the first block"),
        ("0:0;3:1,2", "names block 3; this stage of the ticket has the blocks 0-2"),
        ("0:0;1:1,2,3", "fills place 3 of a stage that ends with 'body.0.2'"),
        ("0:0;1-2", "cannot be read at '1-2'; write it as"),
        ("0:0;1:1,-2", "cannot be read at '1:1,-2'"),
        ("", "cannot be read at ''"),
        ("0:0;1:1,2|0:0;1:1,2|0:0", "has 3 stages, the network 1"),
    ],
)
def test_a_mapping_that_does_not_fit_is_refused_by_name(mapping, said):
    with pytest.raises(InputError) as caught:
        parse_mapping(mapping, [3], names(3))
    assert said in str(caught.value)
    assert repr(mapping) in str(caught.value)


def test_other_mistakes():
    with pytest.raises(InputError, match="order='alternate' is not known; choose 'append' or 'interpolate'"):
        default_sources(2, 3, "alternate")
    with pytest.raises(InputError, match="a stage of 1 block cannot become one of 3"):
        default_sources(1, 3)
