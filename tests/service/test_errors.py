"""The table of statuses is whole, and the envelope says what clients need."""

from __future__ import annotations

import json

import pytest
from pydantic import ValidationError

from jobs import errors as faults
from jobs.request import ImageParameters
from service import errors


def every_fault(root: type[faults.HalftoneError] = faults.HalftoneError) -> set[type[faults.HalftoneError]]:
    """All fault classes that the gateway can meet; other rooms' own reach it as data, with a code."""
    ours = [cls for cls in root.__subclasses__() if cls.__module__.split(".")[0] in {"jobs", "service"}]
    return {root}.union(*map(every_fault, ours))


def test_every_fault_has_a_status_in_the_table() -> None:
    told = every_fault() - {faults.BadSettings}  # that one stops the process before anybody asks
    missing = {cls.__name__ for cls in told if cls not in errors.STATUS and not issubclass(cls, faults.QueueFull)}
    assert missing == set()


def test_retry_after_is_always_there_when_time_heals() -> None:
    for fault in (faults.QueueFull("full"), faults.NoWorker("none"), faults.Unavailable("away"), errors.Busy("busy")):
        assert int(errors.respond(fault).headers["retry-after"]) >= 1
    assert errors.respond(faults.QueueFull("full", retry_after=7.2)).headers["retry-after"] == "8"


def test_the_envelope_is_openais() -> None:
    answer = errors.respond(faults.InvalidRequest("n: must be 1 to 4", param="n"))
    assert answer.status_code == 422
    assert json.loads(bytes(answer.body)) == {
        "error": {
            "message": "n: must be 1 to 4",
            "type": "invalid_request_error",
            "param": "n",
            "code": "invalid_request",
        }
    }


def test_faults_that_would_queue_a_second_job_say_do_not_retry() -> None:
    assert errors.respond(faults.TimedOut("the job goes on")).headers["x-should-retry"] == "false"
    assert "x-should-retry" not in errors.respond(faults.NoWorker("none")).headers


@pytest.mark.parametrize(
    ("body", "param", "text"),
    [
        ({}, "prompt", "prompt: this field is required"),
        ({"prompt": "a", "stepz": 1}, "stepz", "unknown field 'stepz'; known fields: deadline_seconds, guidance_scale"),
        ({"prompt": "a", "n": 9}, "n", "n: Input should be less than or equal to 4; got 9"),
        (
            {"prompt": "a", "n": True, "seed": "7"},
            "seed",
            "seed: Input should be a valid integer; got '7' (and 1 more)",
        ),
        ({"prompt": " "}, "prompt", "prompt: must not be blank; got ' '"),
    ],
)
def test_a_validation_fault_names_the_field(body: dict[str, object], param: str, text: str) -> None:
    with pytest.raises(ValidationError) as caught:
        ImageParameters.model_validate(body)
    fault = errors.from_validation(caught.value.errors(), known=list(ImageParameters.model_fields))
    assert fault.param == param
    assert fault.message.startswith(text)
