"""Inputs for a target where nothing guides the search: seeds, cut up and put together again, and words between."""

from hypothesis import strategies as st

from fuzz import Target


def inputs(target: Target) -> st.SearchStrategy[bytes]:
    """Return a strategy of bytes for a target."""
    seeds = st.sampled_from(list(target.seeds()))
    pieces = st.one_of(st.binary(max_size=8), st.sampled_from([*target.words, b"\n"]))

    @st.composite
    def altered(draw: st.DrawFn) -> bytes:
        data = draw(seeds)
        for _ in range(draw(st.integers(0, 4))):
            start = draw(st.integers(0, len(data)))
            end = draw(st.integers(start, min(len(data), start + 16)))
            data = data[:start] + draw(pieces) + data[end:]
        return data[: target.longest]

    return st.one_of(altered(), st.lists(pieces, max_size=20).map(b"".join), st.binary(max_size=64))
