"""benchmark_model's table of operators, as its releases lay it out."""

import pytest

from edgeprune.devices.benchmark_model import Node, parse_nodes
from edgeprune.errors import EdgepruneError

HEAD = """\
INFO: count=50 first=106022 curr=105780 min=105416 max=106528 avg=105784 std=260

INFO: Profiling Info for Benchmark Initialization:
============================== Run Order ==============================
\t             [node type]\t  [first]\t [avg ms]\t     [%]\t  [cdf%]\t  [mem KB]\t[times called]\t[Name]
\t ModifyGraphWithDelegate\t    6.348\t    6.348\t 99.317%\t 99.317%\t  7148.000\t        1\tModifyGraphWithDelegate/0

INFO: Operator-wise Profiling Info for Regular Benchmark Runs:
"""  # noqa: E501
ORDER = "============================== Run Order ==============================\n"
NARROW = "\t             [node type]\t  [first]\t [avg ms]\t     [%]\t  [cdf%]\t  [mem KB]\t[times called]\t[Name]\n"  # noqa: E501
TAIL = """
============================== Top by Computation Time ==============================
\t             [node type]\t  [first]\t [avg ms]\t     [%]\t  [cdf%]\t  [mem KB]\t[times called]\t[Name]
\t                 SOFTMAX\t    9.000\t    9.000\t 99.000%\t 99.000%\t     0.000\t        1\t[probabilities]:3

Number of nodes executed: 2
"""  # noqa: E501


def test_delegates_operators_among_tflites_own():
    table = """\
\t                QUANTIZE\t    0.199\t    0.203\t  1.328%\t  1.328%\t     0.000\t        1\t[tfl.quantize, b]:0
\t Convolution (NHWC, QC8) IGEMM\t    0.398\t    0.407\t  2.658%\t  3.986%\t     0.000\t        1\tDelegate/Convolution (NHWC, QC8) IGEMM:0
\t Mean (ND) Reduce2\t    0.428\t    0.051\t  4.317%\t  8.304%\t     0.000\t       13\tDelegate/Mean (ND) Reduce2:1
"""  # noqa: E501
    found = parse_nodes(HEAD + ORDER + NARROW + table + TAIL, "m")
    assert found[:2] == [
        Node("QUANTIZE", 0, 0.203, 1),
        Node("Convolution (NHWC, QC8) IGEMM", None, 0.407, 1),
    ]
    # The average is of a call, and the row is of 13 in each inference.
    assert (found[2].kind, found[2].calls, found[2].ms) == (
        "Mean (ND) Reduce2",
        13,
        pytest.approx(0.663),
    )


def test_wide_and_with_the_delegate_in_the_type():
    table = """\
                                         [node type]    [start]    [first]   [avg ms]        [%]     [cdf%]   [mem KB] [times called]   [Name]
                      Delegate/Convolution (NHWC, F32) IGEMM      0.000      0.002      0.003     6.349%     6.349%      0.000             1   [Delegate]:0
                      SOFTMAX      0.000      0.002      0.004     6.349%     6.349%      0.000             1   [StatefulPartitionedCall:0]:11
"""  # noqa: E501
    assert parse_nodes(HEAD + ORDER + table + TAIL, "m") == [
        Node("Convolution (NHWC, F32) IGEMM", None, 0.003, 1),
        Node("SOFTMAX", 11, 0.004, 1),
    ]


def test_a_table_of_the_delegate_in_place_of_its_own_row():
    table = """\
\t TfLiteXNNPackDelegate\t    7.375\t    6.549\t 12.047%\t 12.047%\t     0.000\t        1\t[a;b/BiasAdd, c]:31
\t               SOFTMAX\t    0.375\t    0.549\t 12.047%\t 12.047%\t     0.000\t        1\t[out]:30
"""  # noqa: E501
    alone = HEAD + ORDER + NARROW + table + TAIL
    assert [(node.kind, node.position) for node in parse_nodes(alone, "m")] == [
        ("TfLiteXNNPackDelegate", 31),
        ("SOFTMAX", 30),
    ]
    inside = """\
\t      DelegateOpInvoke\t    5.375\t    5.549\t 12.047%\t 12.047%\t     0.000\t        1\tDelegate/Convolution (NHWC, F32) GEMM:0
"""  # noqa: E501
    both = alone + "Delegate internal: \n" + ORDER + NARROW + inside + TAIL
    assert parse_nodes(both, "m") == [
        Node("SOFTMAX", 30, 0.549, 1),
        Node("Convolution (NHWC, F32) GEMM", None, 5.549, 1),
    ]


def test_a_loops_own_operators_are_in_the_loops_row():
    row = "\t{}\t 0.1\t 0.2\t 1%\t 1%\t 0.000\t 1\t[x]:{}\n"
    text = (
        HEAD
        + "Primary graph profile:\n"
        + ORDER
        + NARROW
        + row.format("WHILE", 2)
        + TAIL
        + "Subgraph (index: 1) profile:\n"
        + ORDER
        + NARROW
        + row.format("LESS", 0)
        + TAIL
    )
    assert parse_nodes(text, "m") == [Node("WHILE", 2, 0.2, 1)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "m: benchmark_model printed no table of operators"),
        (HEAD, "printed no table"),
        (HEAD.partition("INFO: Operator")[0], "printed no table"),
        (HEAD + ORDER + NARROW + "\tCONV_2D\tfast\n", "table is not understood: \tCONV_2D\tfast"),
        (
            HEAD + ORDER + NARROW + "\tADD\t1\tx\t1%\t1%\t0\t1\t[a]:0\n",
            "'x' where a number stands",
        ),
        (
            HEAD + ORDER + "\t[node type]\t[Name]\n\tADD\t[a]:0\n",
            "table is not understood",
        ),
    ],
)
def test_other_text(text, message):
    with pytest.raises(EdgepruneError, match=message):
        parse_nodes(text, "m")
