"""The graph of a Functional or Sequential Keras 3 model: walk it, find patterns, make it again with layers replaced.

Nested models are walked through as if they were flat; a layer that is called more than once is one layer with several
calls. Nothing here changes the model it is given.
"""

from edgedl.graph.patterns import PATTERNS, Optional, Role, chains, find, role
from edgedl.graph.proof import prove
from edgedl.graph.rebuilding import Replacement, copied, flattened, rebuild
from edgedl.graph.walking import Call, Graph, Value, require_graph

__all__ = [
    "PATTERNS",
    "Call",
    "Graph",
    "Optional",
    "Replacement",
    "Role",
    "Value",
    "chains",
    "copied",
    "find",
    "flattened",
    "prove",
    "rebuild",
    "require_graph",
    "role",
]
