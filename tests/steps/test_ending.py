"""The end of a fit: zeros hold whatever other callbacks do there, and wherever they are listed."""

import warnings

import numpy as np
import pytest

from edgeprune.sparsity.callbacks import MagnitudePruning, PreserveSparsity
from edgeprune.sparsity.schedules import ConstantSparsity, PolynomialDecay

from .conftest import zeros

# round(0.75 * 72), round(0.75 * 256), round(0.75 * 48)
THREE_QUARTERS = {"conv/kernel": 54, "hidden/kernel": 192, "head/kernel": 36}
HALF = {"conv/kernel": 36, "hidden/kernel": 128, "head/kernel": 24}


def pruning(**arguments):
    """Of 4 steps an epoch, and 3 epochs, at full sparsity from step 9 on: in the last epoch."""
    return MagnitudePruning(PolynomialDecay(final_sparsity=0.75, **arguments))


def fit(model, data, *callbacks, epochs=3):
    return model.fit(*data, batch_size=16, epochs=epochs, verbose=0, callbacks=list(callbacks))


def best(k, mode, **arguments):
    """By the sparsity, so the best epoch is known: with `min`, the first."""
    return k.callbacks.EarlyStopping(
        "sparsity", patience=9, mode=mode, restore_best_weights=True, **arguments
    )


def fill_at_the_end(k):
    class Fill(k.callbacks.Callback):
        def on_train_end(self, logs=None):
            for weights in self.model.trainable_variables:
                weights.assign(np.full(weights.shape, 2.0))

    return Fill()


@pytest.mark.parametrize("listed", ["before", "after"])
def test_weights_restored_from_before_the_target_are_pruned_and_told(k, compiled, data, listed):
    model, callback = compiled(), pruning(frequency=1)
    callbacks = [best(k, "min"), callback] if listed == "before" else [callback, best(k, "min")]
    # Of 376 weights, by kernel: 1 - (1 - 4 / 9) ** 3 of 54, of 192 and of 36 after 4 steps.
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("ignore")
        warnings.filterwarnings("always", module=r"edgeprune\.")  # as the command line filters
        fit(model, data, *callbacks)
    assert zeros(model) == THREE_QUARTERS
    assert {kernel.name: kernel.zeros for kernel in callback.report} == THREE_QUARTERS
    assert all(kernel.reached for kernel in callback.report)
    assert [str(one.message) for one in told] == [
        "weights set at the end of training, as EarlyStopping(restore_best_weights=True) does, had "
        f"a sparsity of {(45 + 159 + 30) / 376:.4g}, not the 0.75 reached by then; they were "
        "pruned to that, which no metric has seen: evaluate the model again, or restore none from "
        "before the target: start_from_epoch=2"
    ]


def test_the_epoch_that_the_warning_names_is_one_to_start_from(k, compiled, data):
    model, weights = compiled(), []

    class Keep(k.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            weights.append(self.model.get_weights())

    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="weights set")
        fit(model, data, pruning(), Keep(), best(k, "min", start_from_epoch=2), epochs=3)
    assert zeros(model) == THREE_QUARTERS
    # Restored as they were, to the bit.
    for restored, kept in zip(model.get_weights(), weights[2], strict=True):
        assert np.array_equal(restored, kept)


def test_an_early_stop_before_the_target_names_the_epoch_too(k, compiled, data):
    stop = k.callbacks.EarlyStopping("sparsity", patience=1, mode="min")
    callback = pruning(power=1)
    with pytest.warns(UserWarning, match=r"ended at step 8, before .* start_from_epoch=2$"):
        fit(compiled(), data, callback, stop)
    # round(54 * 8 / 9), round(192 * 8 / 9), 36 * 8 / 9
    assert [kernel.zeros for kernel in callback.report] == [48, 171, 32]
    assert not any(kernel.reached for kernel in callback.report)


def test_any_callback_of_any_order_may_set_weights(k, compiled, data):
    """Two that hold zeros, one that evaluates, which makes a new History, and one of our own."""

    class Evaluate(k.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.evaluate(*data, verbose=0)

    model, history = compiled(), k.callbacks.History()
    one, other = MagnitudePruning(ConstantSparsity(0.5), only="conv"), PreserveSparsity()
    hidden = model.get_layer("hidden").kernel
    hidden.assign(np.where(np.arange(256).reshape(16, 16) % 2, hidden.numpy(), 0))
    with pytest.warns(UserWarning, match="sparsity of 0, not the 0.5") as told:
        fit(model, data, other, one, Evaluate(), fill_at_the_end(k), history)
    assert sum("sparsity of 0, not the 0.5" in str(warning.message) for warning in told) == 2
    assert zeros(model) == {"conv/kernel": 36, "hidden/kernel": 128, "head/kernel": 0}
    assert np.all(np.isin(model.get_layer("conv").kernel.numpy(), [0, 2]))
    assert [kernel.zeros for kernel in one.report] == [36]
    assert "on_train_end" not in vars(history)


def test_callbacks_that_look_after_this_one_see_the_zeros(k, compiled, data):
    seen = []

    class Look(k.callbacks.Callback):
        def on_train_end(self, logs=None):
            seen.append(zeros(self.model))

    with pytest.warns(UserWarning, match="weights set at the end"):
        fit(compiled(), data, fill_at_the_end(k), MagnitudePruning(ConstantSparsity(0.5)), Look())
    assert seen == [HALF]


def test_a_history_listed_first_does_not_end_the_fit(k, compiled, data):
    model, callback = compiled(), MagnitudePruning(ConstantSparsity(0.5))
    with pytest.warns(UserWarning, match="weights set at the end"):
        fit(model, data, k.callbacks.History(), fill_at_the_end(k), callback)
    assert zeros(model) == HALF
    assert [kernel.zeros for kernel in callback.report] == list(HALF.values())


def test_a_fit_that_died_does_not_end_the_next(k, compiled, data):
    class Stop(k.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            raise KeyboardInterrupt

    model, history = compiled(), k.callbacks.History()
    callback = MagnitudePruning(ConstantSparsity(0.5))
    with pytest.raises(KeyboardInterrupt):
        fit(model, data, callback, Stop(), history)
    fit(model, data, history)  # the same History, dense
    assert callback.report == ()
    assert zeros(model)["conv/kernel"] == 0


def test_a_custom_loop_that_sets_weights_before_it_finishes(k, compiled):
    model = compiled()
    before = model.get_weights()
    callback = MagnitudePruning(ConstantSparsity(0.5))
    callback.start(model, total_steps=8)
    callback.step()
    model.set_weights(before)
    with pytest.warns(UserWarning, match=r"sparsity of 0, .*evaluate the model again$"):
        callback.finish()
    assert zeros(model) == HALF
