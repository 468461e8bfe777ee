"""Choosing among several texts generated for the same prompt."""

from __future__ import annotations

from collections.abc import Sequence


def most_similar(texts: Sequence[str]) -> int:
    """Return the index of the text with the highest summed sentence BLEU against the others; the first of equals.

    It is the choice of minimum Bayes risk if the texts are samples of the same distribution (Kumar and Byrne, 2004).
    """
    if len(texts) == 1:
        return 0
    from sacrebleu.metrics import BLEU

    # texts shorter than four words have no 4-grams: count the n-grams that they have
    bleu = BLEU(effective_order=True)
    agreement = [
        sum(bleu.sentence_score(text, [other]).score for j, other in enumerate(texts) if j != i)
        for i, text in enumerate(texts)
    ]
    return agreement.index(max(agreement))
