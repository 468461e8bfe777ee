"""The names that a plot may use: a `<kind>` draws a word for its place alone, a `{role}` is remembered."""

from __future__ import annotations

from minllm.data.tales import words
from minllm.data.tales.tables import ANIMALS, CHILDREN, ELDERS, SECTION_KINDS, STORMS, TOYS
from minllm.data.tales.thing import Kind

KINDS: dict[str, Kind] = {
    "animal": ANIMALS, "answered": words.ANSWERED, "asked": words.ASKED, "bird": words.BIRDS,
    "child": CHILDREN, "corner": words.CORNERS, "creatures": words.CREATURES, "cut": words.CUTS,
    "day": words.DAYS, "elder": ELDERS, "find": words.TREASURES, "flowers": words.FLOWERS,
    "food": words.FOODS, "fright": words.FRIGHTS, "game": words.GAMES, "garment": words.GARMENTS,
    "glad": words.GLAD, "house": words.HOUSES, "insect": words.INSECTS, "kindly": words.KIND_WAYS,
    "look": words.LOOKS, "mien": words.MIENS, "moment": words.MOMENTS, "nature": words.NATURES,
    "noise": words.NOISES, "number": words.NUMBERS, "plaything": TOYS, "quickly": words.QUICK_WAYS,
    "raced": words.RACED, "revellers": words.REVELLERS, "riches": words.RICHES, "sad": words.SAD,
    "said": words.SAID, "season": words.SEASONS, "shape": words.SHAPES, "size": words.SIZES,
    "sky": words.WEATHERS, "smell": words.SMELLS, "song": words.SONGS, "soon": words.SOON,
    "stone": words.STONES, "storm": STORMS, "taste": words.TASTES, "tint": words.COLOURS,
    "tool": words.TOOLS, "town": words.TOWNS, "tree": words.TREES, "virtue": words.VIRTUES,
    "went": words.WENT, "where": SECTION_KINDS, "wrap": words.WRAPS,
}  # fmt: skip

# each role, and what fills it: a kind, or with a dot the part of another role, which must have been told before
CAST = {
    "animal": "animal", "charm": "find", "colour": "tint", "corner": "corner", "cut": "cut",
    "dress": "garment", "dye": "tint", "elder": "elder", "friend": "child", "helper": "elder",
    "hero": "child", "hindrance": "stone", "home": "animal.home", "house": "house", "mien": "mien",
    "nook": "second.spot", "place": "where", "prize": "find", "rival": "child", "season": "season",
    "second": "where", "shade": "tint", "sound": "noise", "spot": "place.spot", "storm": "storm",
    "swap": "find", "taste": "taste", "temper": "nature", "toy": "plaything", "trait": "look",
    "treat": "food", "view": "place.sight", "village": "town", "weekday": "day", "wrap": "wrap",
}  # fmt: skip
