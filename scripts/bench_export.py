"""`edgedl.export` with its arguments given as JSON; prints its seconds as JSON, from when TensorFlow is imported."""

import json
import sys
import time

import edgedl
from edgedl import worker

given = json.loads(sys.argv[1])
worker.call("edgedl.models:warm", {}, child=worker.TENSORFLOW)

begun = time.perf_counter()
edgedl.export(**given)
print(json.dumps({"seconds": time.perf_counter() - begun}))
