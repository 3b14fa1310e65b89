"""The variables behind a kernel: its own, the average that an optimizer keeps, one a replica."""

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from edgeprune import models

keras: Any = models.import_keras()


def native(variable: Any) -> Any:
    """Return the `tf.Variable` (or mirrored one) inside a `keras.Variable` or an autocast one."""
    if isinstance(variable, keras.Variable):
        return variable.value
    return getattr(variable, "_variable", variable)


def moving_average(optimizer: Any, variable: Any) -> Any:
    """Return the average that an optimizer with `use_ema` keeps of a weight, or None."""
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    if not getattr(optimizer, "use_ema", False):
        return None
    # Private in both flavours, but Keras' own SwapEMAWeights reads the same list.
    averages = getattr(optimizer, "_model_variables_moving_average", None)
    if not averages:
        return None
    if isinstance(variable, keras.Variable):
        average = averages[optimizer._get_variable_index(variable)]
    else:
        average = averages[optimizer._index_dict[optimizer._var_key(variable)]]
    return None if average is None else native(average)


def across_replicas(strategy: Any, act: Callable[[Any], None]) -> None:
    """Call `act(strategy)` once for all replicas, from within one of them or from outside."""
    replica = tf.distribute.get_replica_context()
    if replica is None or strategy.num_replicas_in_sync == 1:
        act(strategy)
    else:
        replica.merge_call(act)


def update(strategy: Any, variable: Any, function: Callable[..., None], *others: Any) -> None:
    """Call `function(variable, *others)`, on each replica with its own of them."""
    if strategy.num_replicas_in_sync == 1:
        function(variable, *others)
    else:
        strategy.extended.update(variable, function, args=others, group=False)
