"""Act at the very end of a fit, after the callbacks listed later."""

from collections.abc import Callable, Mapping
from typing import Any


def after_all_callbacks(history: Any, params: Any, act: Callable[[], None]) -> bool:
    """Have `act` called when every callback of this fit has had its `on_train_end`.

    Both flavours of Keras put a History after the user's callbacks, known as `model.history`
    and returned by `fit`. Its `on_train_end`, which does nothing, is replaced on the instance and
    put back as it is called.

    Args:
      history: the model's History, if it has one.
      params: of a callback of this fit; Keras gives all callbacks of a fit the same object.
      act: what to do.

    Returns:
      Whether it will be called: False where that History belongs to another fit.
    """
    if history is None or history.params is not params:
        return False
    own = history.on_train_end

    def on_train_end(logs: Mapping[str, Any] | None = None) -> None:
        vars(history).pop("on_train_end", None)
        own(logs)
        # A fit that died leaves this behind on a History that the user may list again.
        if history.params is params:
            act()

    history.on_train_end = on_train_end
    return True
