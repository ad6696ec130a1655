"""The table of routes: which tasks it serves, and that nothing else of the server knows a task."""

import ast
from pathlib import Path

from convmae_deploy.tasks import TASKS
from serving.api.open_inference import CLASSIFICATION
from serving.api.routes import ROUTES

SERVING = Path(__file__).parents[3] / "serving"


def test_the_tasks_with_a_route_of_their_own_are_those_that_the_runtime_has() -> None:
    predicting = {name for name, task in TASKS.items() if not name.endswith("features")}  # /v1/features is for those
    assert [route.task for route in ROUTES if route.task] == sorted(predicting, key=list(TASKS).index)


def test_no_task_is_named_outside_the_table() -> None:
    names = set(TASKS) - {"features"}  # which is also what a body calls its arrays
    for file in SERVING.rglob("*.py"):
        constants = {node.value for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Constant)}
        if file.name == "open_inference.py":
            constants.discard(CLASSIFICATION)  # Triton's word
        assert file.name == "routes.py" or not constants & names, file.name
