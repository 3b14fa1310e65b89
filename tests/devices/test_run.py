"""One call for any devices: what is refused before anything runs."""

import pytest

from edgeprune.devices.run import benchmark
from edgeprune.errors import EdgepruneError, InputError


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "model.tflite"
    path.write_bytes(b"\0\0\0\0TFL3 and nothing else")
    return path


@pytest.fixture
def off(tmp_path):
    """Write profiles of devices that cannot be reached."""

    def write(name):
        path = tmp_path / f"{name}.toml"
        path.write_text(
            'description = "off"\nbackend = "ssh"\n[reach]\nhost = "127.0.0.1"\nport = 1\n'
        )
        return path

    return write


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"device": "absent"}, "unknown device 'absent'; known: "),
        ({"device": []}, "got no device"),
        ({"device": ["local", "local"]}, "device 'local' is named twice"),
        ({"device": "cortex-m4", "runtime": "tensorflow"}, "supported: tflite-micro"),
        ({"names": []}, "got 0 names for 1 models"),
        ({"threads": 2000}, "`threads` must be a whole number from 1 to 1024"),
    ],
)
def test_what_is_refused_before_anything_runs(arguments, message, model):
    with pytest.raises(InputError, match=message):
        benchmark(model, **arguments)


def test_one_device_raises_its_own_error(model, off):
    with pytest.raises(EdgepruneError, match=r"^127\.0\.0\.1 is there.*refused\); start it"):
        benchmark(model, device=off("board"))


def test_all_devices_failing_is_one_error_that_names_each(model, off):
    with pytest.raises(EdgepruneError) as caught:
        benchmark(model, device=[off("a"), off("b")])
    text = str(caught.value)
    assert text.startswith("no device gave figures: a: 127.0.0.1 is there")
    assert "; b: 127.0.0.1 is there" in text
