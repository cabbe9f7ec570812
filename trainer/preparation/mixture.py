"""How much of each set, and in which order. Pure.

The weights of the Pile are shares of bytes: Gao et al. 2020, arXiv 2101.00027, table 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

PILE_WEIGHTS: Mapping[str, float] = {
    "Pile-CC": 18.11,
    "PubMed Central": 14.40,
    "Books3": 12.07,
    "OpenWebText2": 10.01,
    "ArXiv": 8.96,
    "Github": 7.59,
    "FreeLaw": 6.12,
    "StackExchange": 5.13,
    "USPTO Backgrounds": 3.65,
    "PubMed Abstracts": 3.07,
    "Gutenberg (PG-19)": 2.17,
    "OpenSubtitles": 1.55,
    "Wikipedia (en)": 1.53,
    "DM Mathematics": 1.24,
    "Ubuntu IRC": 0.88,
    "BookCorpus2": 0.75,
    "EuroParl": 0.73,
    "HackerNews": 0.62,
    "YoutubeSubtitles": 0.60,
    "PhilPapers": 0.38,
    "NIH ExPorter": 0.30,
    "Enron Emails": 0.14,
}
"""Percent."""


def shares(available: Mapping[str, int], weights: Mapping[str, float]) -> dict[str, float]:
    """The fraction of the mixture each set should have; they sum to 1, or there are no sets.

    Sets that ``weights`` does not name keep the fraction they have in ``available`` bytes; the
    others divide the rest by weight. A weight of 0 leaves a set out.
    """
    total = sum(available.values())
    if not total:
        return {}
    named = {name: weights[name] for name in available if name in weights}
    if not sum(named.values()):
        named = {}
    left_out = {name for name in available if name in weights and name not in named}
    unnamed = {
        name: size for name, size in available.items() if name not in named and name not in left_out
    }
    total -= sum(available[name] for name in left_out)
    if not total:
        return {}
    unnamed_share = sum(unnamed.values()) / total if named else 1.0
    found = {name: size / total for name, size in unnamed.items()}
    weight = sum(named.values())
    found |= {name: (1 - unnamed_share) * value / weight for name, value in named.items()}
    return {name: found[name] for name in available if found.get(name)}


def quotas(
    available: Mapping[str, int], weights: Mapping[str, float], total: int | None = None
) -> dict[str, int]:
    """Bytes to take of each set, together ``total`` (default: all there is), none twice.

    A set smaller than its share is taken whole, and the others divide what it leaves.
    """
    open_shares = shares(available, weights)
    usable = sum(available[name] for name in open_shares)
    left = usable if total is None else min(total, usable)
    taken = dict.fromkeys(available, 0)
    while open_shares and left > 0:
        scale = left / sum(open_shares.values())
        whole = [name for name, share in open_shares.items() if available[name] <= share * scale]
        if not whole:
            for name, share in open_shares.items():
                taken[name] = int(share * scale)
            break
        for name in whole:
            taken[name] = available[name]
            left -= available[name]
            del open_shares[name]
    return taken


def interleave(sizes: Mapping[str, list[int]], wanted: Mapping[str, int]) -> Iterator[str]:
    """Names of sets, one for each document, so that every stretch has the whole's proportions.

    ``sizes`` lists the bytes of each set's documents in order. A set gives documents while it is
    below its bytes ``wanted``: at most one document more than asked. Always next is the set that
    is furthest behind (stride scheduling).
    """
    position = {name: 0 for name in sizes if wanted.get(name, 0) > 0 and sizes[name]}
    taken = dict.fromkeys(position, 0)
    while position:
        # The middle of the next document is compared: long ones come neither early nor late.
        name = min(
            position,
            key=lambda one: ((taken[one] + sizes[one][position[one]] / 2) / wanted[one], one),
        )
        yield name
        taken[name] += sizes[name][position[name]]
        position[name] += 1
        if position[name] == len(sizes[name]) or taken[name] >= wanted[name]:
            del position[name]
