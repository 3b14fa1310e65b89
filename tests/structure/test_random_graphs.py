from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from structure.law import check_law, hold, randomize
from structure.random_graphs import random_model

from edgeprune.models import import_keras
from edgeprune.structure.plan import plan_channels

keras = import_keras()

_GRAPHS = {
    "numbers": st.lists(st.integers(0, 2**16), min_size=10, max_size=60),
    "steps": st.integers(2, 8),
    "seed": st.integers(0, 2**16),
}


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(**_GRAPHS, ratio=st.sampled_from((0.25, 0.5, 0.9)))
def test_the_law_holds_on_random_graphs(numbers, steps, ratio, seed):
    model = random_model(numbers, steps)
    randomize(model, seed)
    graph, smaller = check_law(model, ratio, seed)
    assert smaller.output_shape == model.output_shape
    assert not any("has no rule" in refusal.reason for refusal in graph.refused)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    **_GRAPHS,
    ratio=st.sampled_from((0.0, 0.3, 0.5, 0.8)),
    criterion=st.sampled_from(("l1", "fpgm", "bn_scale", "random")),
    ranking=st.sampled_from(("group", "global")),
    round_to=st.sampled_from((1, 2, 4)),
)
def test_any_plan_of_a_random_graph_holds_the_law(
    numbers, steps, seed, ratio, criterion, ranking, round_to
):
    model = random_model(numbers, steps)
    randomize(model, seed)
    plan = plan_channels(
        model, pruning_ratio=ratio, criterion=criterion, ranking=ranking, round_to=round_to
    )
    smaller = hold(plan.graph, plan.removed, seed)
    assert smaller.count_params() == plan.parameters_after <= plan.parameters_before
    for group, removed in plan.removed.items():
        assert not plan.graph.groups[group].frozen[removed].any()
