from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from structure.law import check_law, randomize
from structure.random_graphs import random_model

from edgeprune.models import import_keras

keras = import_keras()


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    numbers=st.lists(st.integers(0, 2**16), min_size=10, max_size=60),
    steps=st.integers(2, 8),
    ratio=st.sampled_from((0.25, 0.5, 0.9)),
    seed=st.integers(0, 2**16),
)
def test_the_law_holds_on_random_graphs(numbers, steps, ratio, seed):
    model = random_model(numbers, steps)
    randomize(model, seed)
    graph, smaller = check_law(model, ratio, seed)
    assert smaller.output_shape == model.output_shape
    assert not any("has no rule" in refusal.reason for refusal in graph.refused)
