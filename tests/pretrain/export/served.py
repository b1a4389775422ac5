"""Run by `test_registry.py` far from the source tree: load a registered model as MLflow's users do, and talk.

    python served.py MODEL_URI CALLS

CALLS is JSON: a list of calls, each a list of rows. Prints one JSON line: the replies to each call, and where
the code that gave them lies.
"""

from __future__ import annotations

import json
import sys

import mlflow
import pandas  # type: ignore[import-untyped]

model = mlflow.pyfunc.load_model(sys.argv[1], suppress_warnings=True)
replies = [
    model.predict(pandas.DataFrame(rows), params={"max_new_tokens": 8}) for rows in json.loads(sys.argv[2])
]
assert "deepspeed" not in sys.modules
print(json.dumps({"replies": replies, "code": sys.modules["pretrain"].__file__}))
