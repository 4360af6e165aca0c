"""Parameter shapes of real models, written from their architectures."""

from __future__ import annotations

import math

Shapes = list[tuple[int, ...]]


def gpt2(layers: int, width: int, vocabulary: int = 50257, context: int = 1024) -> Shapes:
    """Radford et al. 2019, with the output layer tied to the embedding."""
    block: Shapes = [
        (width,), (width,), (width, 3 * width), (3 * width,), (width, width), (width,),
        (width,), (width,), (width, 4 * width), (4 * width,), (4 * width, width), (width,),
    ]  # fmt: skip
    return [(vocabulary, width), (context, width), *layers * block, (width,), (width,)]


def llama2(layers: int, width: int, hidden: int, vocabulary: int = 32000) -> Shapes:
    """Touvron et al., arXiv 2307.09288, without grouped queries."""
    block: Shapes = [*4 * [(width, width)], *2 * [(hidden, width)], (width, hidden)]
    block += [(width,), (width,)]
    return [(vocabulary, width), *layers * block, (width,), (vocabulary, width)]


def narrowed_gpt2(d: int) -> Shapes:
    """A GPT-2 of 12 layers narrowed to d parameters, or less than one row of its embedding fewer.

    The parts keep their shares: the largest width at which all but the embedding takes 69 % of d,
    and a vocabulary that fills the rest. From the 124,439,808 of GPT-2 it is GPT-2.
    """

    def without_embedding(width: int) -> int:
        return size(gpt2(12, width, vocabulary=0, context=4 * width // 3))

    width = 1
    while without_embedding(width + 1) <= 0.69 * d:
        width += 1
    vocabulary = (d - without_embedding(width)) // width
    return gpt2(12, width, vocabulary, context=4 * width // 3)


def size(shapes: Shapes) -> int:
    return sum(map(math.prod, shapes))


MODELS = {
    "GPT-2 125M": gpt2(12, 768),
    "GPT-2 XL 1.5B": gpt2(48, 1600),
    "LLaMA-2 7B": llama2(32, 4096, 11008),
}


# As published; a slip in the shapes above would show here.
assert [size(s) for s in MODELS.values()] == [124_439_808, 1_557_611_200, 6_738_415_616]
assert narrowed_gpt2(124_439_808) == MODELS["GPT-2 125M"]
