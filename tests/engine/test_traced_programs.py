"""What makes the host wait for a GPU, frozen: nothing in any program but what is stated here."""

import json
import subprocess
import sys

import pytest

# What the detector asks for depends on the boxes of each photo (4 here): which there are, how many are on each level of
# the pyramid, and torchvision's constants. Never on the number of classes.
DETECT = {"copy": 5, "nonzero": 35, "nms": 4, "_local_scalar_dense": 2}
DETECT_EVALUATION = {"copy": 11, "nonzero": 8, "nms": 8, "_local_scalar_dense": 2}


@pytest.mark.slow
def test_no_program_waits_for_the_device_but_where_it_is_stated() -> None:
    command = [sys.executable, "-m", "tests.engine.traced_programs", "pretrain", "finetune"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    for dtype in ("torch.bfloat16", "torch.float16"):
        forward = found[f"forward {dtype}"]
        assert forward.pop("detect", DETECT) == DETECT
        assert forward and all(waits == {} for waits in forward.values()), forward
    assert found["evaluation"]["detect"] == DETECT_EVALUATION
    update = found["update torch.bfloat16"]
    assert update.pop("detect") == DETECT
    assert update.pop("linprobe") == {"figures": 1}  # LARS cannot leave out an update by itself
    assert update and all(waits == {} for waits in update.values()), update
    assert found["update torch.float16"] == {"pretrain": {}, "linprobe": {"_local_scalar_dense": 1}}  # asked by scaler
    # one graph for the first batch, one for all others
    assert found["compiled"] == dict.fromkeys(("pretrain", "finetune"), {"graphs": 2, "breaks": 0})
