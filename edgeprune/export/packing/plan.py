"""The list of arrays that were taken out of a file, in varints.

First how many there are, at most `MOST_ARRAYS`. Then for each: how many bytes lie between it and
the one before, its kind and role in one number, and how many numbers it has; and if it is computed,
where the weights' scales come in the list and where the factor lies in the file, both relative to
itself.
"""

from dataclasses import replace

from edgeprune.errors import InputError
from edgeprune.export.packing.arrays import MOST_ARRAYS, SMALLEST_BYTES, Product, Span
from edgeprune.export.packing.kinds import KINDS, SCALES

_OWN, _SHARED, _COMPUTED = range(3)
_ROLES = 3
_MAX_VARINT_BITS = 63


def varint(number: int) -> bytes:
    """Return an integer from 0 in 7 bits to a byte, the lowest first."""
    found = bytearray()
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    found.append(number)
    return bytes(found)


class Varints:
    """Reads one varint after the other."""

    def __init__(self, content: bytes, position: int) -> None:
        self.content = content
        self.position = position

    def next(self) -> int:
        """Return the next.

        Raises:
          InputError: there is none, or it is longer than any that is written.
        """
        number = 0
        for shift in range(0, _MAX_VARINT_BITS, 7):
            if self.position >= len(self.content):
                raise InputError("it is cut off")
            byte = self.content[self.position]
            self.position += 1
            number |= (byte & 127) << shift
            if byte < 128:
                return number
        raise InputError("it is damaged: a number is too long")

    def signed(self) -> int:
        """Return the next as an integer of either sign."""
        number = self.next()
        return -(number + 1) // 2 if number % 2 else number // 2


def _signed(number: int) -> bytes:
    return varint(2 * number if number >= 0 else -2 * number - 1)


def write_plan(spans: list[Span]) -> bytes:
    """Return the list of arrays as bytes."""
    places = {span.start: place for place, span in enumerate(spans)}
    written = [varint(len(spans))]
    end = 0
    for place, span in enumerate(spans):
        role = _COMPUTED if span.product else _SHARED if span.shared else _OWN
        written.append(varint(span.start - end))
        written.append(varint(KINDS.index(span.kind) * _ROLES + role))
        written.append(varint(span.number))
        if span.product is not None:
            written.append(_signed(places[span.product.weights_start] - place))
            written.append(_signed(span.product.factor_start - span.start))
        end = span.end
    return b"".join(written)


def read_plan(content: bytes, content_bytes: int) -> tuple[list[Span], int]:
    """Read what `write_plan` has written.

    Args:
      content: begins with the plan.
      content_bytes: length of the file that the arrays lie in.

    Returns:
      The arrays, and where in `content` the plan ends.

    Raises:
      InputError: there is no such plan of such a file.
    """
    varints = Varints(content, 0)
    number_of_arrays = varints.next()
    if number_of_arrays > MOST_ARRAYS:
        raise InputError(f"it is damaged: it lists {number_of_arrays} arrays, over {MOST_ARRAYS}")
    spans: list[Span] = []
    computed: list[tuple[int, int, int]] = []
    end = 0
    for place in range(number_of_arrays):
        start = end + varints.next()
        index, role = divmod(varints.next(), _ROLES)
        number = varints.next()
        if index >= len(KINDS) or number * KINDS[index].itemsize < SMALLEST_BYTES:
            raise _damaged()
        spans.append(Span(start, number, KINDS[index], role != _OWN))
        end = spans[-1].end
        if end > content_bytes:
            raise _damaged()
        if role == _COMPUTED:
            computed.append((place, place + varints.signed(), start + varints.signed()))
    sources = [span.shared and span.kind is SCALES for span in spans]
    for place, _, _ in computed:
        sources[place] = False
    for place, source, factor in computed:
        span = spans[place]
        if (
            span.kind is not SCALES
            or not 0 <= source < len(spans)
            or not sources[source]
            or spans[source].number != span.number
            or not 0 <= factor <= content_bytes - SCALES.itemsize
        ):
            raise _damaged()
        spans[place] = replace(span, product=Product(spans[source].start, factor))
    return spans, varints.position


def _damaged() -> InputError:
    return InputError("it is damaged: its list of arrays contradicts itself")
