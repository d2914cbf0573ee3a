"""What a call is for, and chains of calls such as convolution, batch normalization, activation."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from edgedl.graph.walking import Call, Graph

_ACTIVATIONS = {
    "Activation", "ReLU", "LeakyReLU", "PReLU", "ELU", "Softmax", "Relu", "Relu6", "LeakyRelu", "Sigmoid", "Tanh",
    "Elu", "Selu", "Gelu", "Silu", "HardSigmoid", "HardSilu", "HardTanh", "Softplus", "Softsign", "LogSoftmax",
    "LogSigmoid", "Celu", "Glu", "SiluOp", "Swish", "Mish",
}  # fmt: skip


class Role(StrEnum):
    """What a layer or op does, layers and ops of one meaning alike."""

    CONVOLUTION = "convolution"
    DEPTHWISE = "depthwise"
    TRANSPOSED = "transposed convolution"
    DENSE = "dense"
    NORMALIZATION = "batch normalization"
    OTHER_NORMALIZATION = "other normalization"
    ACTIVATION = "activation"
    ADD = "residual add"
    COMBINE = "element-wise of several"
    CONCAT = "concat"
    POOLING = "pooling"
    RECURRENT = "recurrent"
    ATTENTION = "attention"
    RESHAPE = "reshape"
    OTHER = "other"


_ROLES = {
    **dict.fromkeys(("Conv1D", "Conv2D", "Conv3D", "SeparableConv1D", "SeparableConv2D"), Role.CONVOLUTION),
    **dict.fromkeys(("DepthwiseConv1D", "DepthwiseConv2D"), Role.DEPTHWISE),
    **dict.fromkeys(("Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose"), Role.TRANSPOSED),
    **dict.fromkeys(("Dense", "EinsumDense"), Role.DENSE),
    "BatchNormalization": Role.NORMALIZATION,
    **dict.fromkeys(
        ("LayerNormalization", "GroupNormalization", "RMSNormalization", "UnitNormalization", "SpectralNormalization"),
        Role.OTHER_NORMALIZATION,
    ),
    **dict.fromkeys(_ACTIVATIONS, Role.ACTIVATION),
    "Add": Role.ADD,
    **dict.fromkeys(("Subtract", "Multiply", "Average", "Maximum", "Minimum"), Role.COMBINE),
    **dict.fromkeys(("Concatenate",), Role.CONCAT),
    **dict.fromkeys(("LSTM", "GRU", "SimpleRNN", "RNN", "Bidirectional", "ConvLSTM2D"), Role.RECURRENT),
    **dict.fromkeys(("MultiHeadAttention", "GroupedQueryAttention", "Attention", "AdditiveAttention"), Role.ATTENTION),
    **dict.fromkeys(("Flatten", "Reshape", "Permute", "Transpose", "Squeeze", "ExpandDims"), Role.RESHAPE),
}


def role(operation: Any) -> Role:
    """What a layer or op is for, by its class."""
    name = type(operation).__name__
    if "Pool" in name:
        return Role.POOLING
    return _ROLES.get(name, Role.OTHER)


@dataclass(frozen=True)
class Optional:
    """A link of a chain that may be missing."""

    role: Role


Link = Role | Optional

PATTERNS: dict[str, tuple[Link, ...]] = {
    "conv_bn_activation": (Role.CONVOLUTION, Role.NORMALIZATION, Optional(Role.ACTIVATION)),
    "conv_activation": (Role.CONVOLUTION, Role.ACTIVATION),
    "depthwise_bn_activation": (Role.DEPTHWISE, Optional(Role.NORMALIZATION), Optional(Role.ACTIVATION)),
    "dense_bn_activation": (Role.DENSE, Optional(Role.NORMALIZATION), Optional(Role.ACTIVATION)),
    "residual_add": (Role.ADD, Optional(Role.ACTIVATION)),
    "concat": (Role.CONCAT,),
    "pooling": (Role.POOLING,),
    "recurrent": (Role.RECURRENT,),
    "attention": (Role.ATTENTION,),
}


def chains(graph: Graph, *links: Link) -> tuple[tuple[Call | None, ...], ...]:
    """Every place where the links follow one another, as calls in their order; None where an optional one is missing.

    Within a chain each tensor goes to the next call alone, and none is an output of the model. The first link is
    no `Optional`.
    """
    found = [_from(graph, call, links) for call in graph.calls if role(call.layer) is links[0]]
    return tuple(chain for chain in found if chain is not None)


def find(graph: Graph, pattern: str) -> tuple[tuple[Call | None, ...], ...]:
    """The chains of a named pattern of `PATTERNS`."""
    return chains(graph, *PATTERNS[pattern])


def _from(graph: Graph, first: Call, links: tuple[Link, ...]) -> tuple[Call | None, ...] | None:
    chain: list[Call | None] = [first]
    last = first
    for link in links[1:]:
        follower = graph.next(last)
        wanted = link.role if isinstance(link, Optional) else link
        if follower is not None and role(follower.layer) is wanted:
            chain.append(follower)
            last = follower
        elif isinstance(link, Optional):
            chain.append(None)
        else:
            return None
    return tuple(chain)
