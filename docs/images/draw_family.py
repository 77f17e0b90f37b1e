"""The drawings of docs/concepts/family.md: where the value of one place and one channel comes from, by network.

python docs/images/draw_family.py    writes docs/images/family/*.svg; a test compares them, and shifts with the code.
"""

import math
from collections.abc import Callable, Iterable
from pathlib import Path

OUT = Path(__file__).with_name("family")
WIDTH, GRID, TOP = 360, 80, 24  # units of a drawing, of the side of a grid, and where grids begin
LARGER = 1.5  # pixels of a unit where there is room; a phone shows a unit as a pixel
N, CHANNELS = 5, 8
MIDDLE = (2, 2)
Place = tuple[int, int]
EVERYWHERE = [(i, j) for i in range(N) for j in range(N)]

STYLE = """
text { font: 10.5px system-ui, sans-serif; fill: #24292f; text-anchor: middle; }
.head { font-weight: 600; } .digit { font-size: 10px; } .white { fill: #fff; }
.card { fill: #f6f7f9; } .empty { fill: #fff; } .line { stroke: #b4bcc6; fill: none; }
.learnt { fill: #3674c9; } .moved { fill: #23875a; } .decided { fill: #8e4fc0; }
.target { stroke: #d96c00; stroke-width: 2.5; fill: none; }
.arrow { stroke: #24292f; stroke-width: 1.4; fill: none; marker-end: url(#tip); } #tip path { fill: #24292f; }
.zero { fill: none; stroke: #7b8591; stroke-dasharray: 2 2; }
@media (prefers-color-scheme: dark) {
  text { fill: #e4e7ec; } .card { fill: #20242d; } .empty { fill: #2b303b; } .line { stroke: #565e6b; }
  .learnt { fill: #4a86d8; } .moved { fill: #2f9c6b; } .decided { fill: #a066d3; }
  .target { stroke: #ff9a3c; } .arrow { stroke: #e4e7ec; } #tip path { fill: #e4e7ec; } .zero { stroke: #98a2af; }
}
"""


def text(x: float, y: float, words: str, kind: str = "") -> str:
    return f'<text x="{x:g}" y="{y:g}" class="{kind}">{words}</text>'


def rect(x: float, y: float, w: float, h: float, kind: str, opacity: float = 1, radius: float = 0) -> str:
    more = (f' opacity="{opacity:g}"' if opacity < 1 else "") + (f' rx="{radius:g}"' if radius else "")
    return f'<rect x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" class="{kind}"{more}/>'


def arrow(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<path d="M{x1:g} {y1:g} L{x2:g} {y2:g}" class="arrow"/>'


class Panel:
    """A grid of places with its heading, centred at x; below it the channels, and words."""

    def __init__(self, x: float, head: str, words: str, *, n: int = N, side: float = GRID, top: float = TOP) -> None:
        self.x, self.n, self.side, self.cell, self.top = x, n, side, side / n, top
        self.left, self.bottom = x - side / 2, top + side
        self.parts = [text(x, top - 8, head, "head")]
        self.words = words

    def corner(self, place: Place) -> tuple[float, float]:
        return self.left + place[1] * self.cell, self.top + place[0] * self.cell

    def centre(self, place: Place) -> tuple[float, float]:
        x, y = self.corner(place)
        return x + self.cell / 2, y + self.cell / 2

    def grid(
        self,
        sources: Iterable[Place] = (),
        kind: str = "learnt",
        target: Place | None = MIDDLE,
        opacity: Callable[[Place], float] = lambda place: 1,
        digits: dict[Place, str] | None = None,
    ) -> "Panel":
        self.parts.append(rect(self.left, self.top, self.side, self.side, "empty"))
        for p in sources:
            if 0 <= p[0] < self.n and 0 <= p[1] < self.n:
                self.parts.append(rect(*self.corner(p), self.cell, self.cell, kind, opacity(p)))
        for i in range(self.n + 1):
            x, y = self.left + i * self.cell, self.top + i * self.cell
            self.parts.append(
                f'<path d="M{x:g} {self.top:g} V{self.bottom:g} M{self.left:g} {y:g} H{self.left + self.side:g}" '
                'class="line"/>'
            )
        for p, digit in (digits or {}).items():
            outside = not (0 <= p[0] < self.n and 0 <= p[1] < self.n)
            if outside:
                self.parts.append(rect(*self.corner(p), self.cell, self.cell, "zero"))
            x, y = self.centre(p)
            self.parts.append(text(x, y + 3.5, digit, "digit" if outside else "digit white"))
        if target:
            self.parts.append(rect(*self.corner(target), self.cell, self.cell, "target"))
        return self

    def move(self, source: Place, target: Place) -> "Panel":
        (x1, y1), (x2, y2) = self.centre(source), self.centre(target)
        if source != target:
            self.parts.append(arrow(x1, y1, x1 + (x2 - x1) * 0.8, y1 + (y2 - y1) * 0.8))
        return self

    def channels(
        self,
        sources: Iterable[int],
        kind: str = "learnt",
        target: int | None = 3,
        n: int = CHANNELS,
        digits: Iterable[str] = (),
    ) -> "Panel":
        w, y, h, sources = self.side / n, self.bottom + 7, 11, set(sources)
        self.parts += [rect(self.left + i * w, y, w, h, kind if i in sources else "empty") for i in range(n)]
        self.parts += [rect(self.left + i * w, y, w, h, "line") for i in range(n)]
        for i, digit in enumerate(digits):
            self.parts.append(text(self.left + (i + 0.5) * w, y + 9, digit, "digit white" if i in sources else "digit"))
        if target is not None:
            self.parts.append(rect(self.left + target * w, y, w, h, "target"))
        return self

    def svg(self) -> str:
        lines = self.words.split("|")
        assert max(map(len, lines)) <= 20, self.words  # of a third of the width
        return "".join(self.parts + [text(self.x, self.bottom + 34 + 13.5 * i, line) for i, line in enumerate(lines)])


def drawing(title: str, *parts: "Panel | str", height: float = 178) -> str:
    body = "\n".join(p if isinstance(p, str) else p.svg() for p in parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH * LARGER:g}" height="{height * LARGER:g}" '
        f'viewBox="0 0 {WIDTH} {height:g}" role="img">\n<title>{title}</title>\n<style>{STYLE}</style>\n'
        '<defs><marker id="tip" viewBox="0 0 6 6" refX="5" refY="3" markerWidth="5" markerHeight="5" '
        f'orient="auto"><path d="M0 0 L6 3 L0 6 z"/></marker></defs>\n{rect(0, 0, WIDTH, height, "card", radius=6)}\n'
        f"{body}\n</svg>\n"
    )


def sign(x: float, words: str) -> str:
    return text(x, TOP + GRID / 2 + 5, words, "head")


TIMES, PLUS = "\N{MULTIPLICATION SIGN}", "+"


def columns(n: int) -> list[float]:
    return [WIDTH * (i + 0.5) / n for i in range(n)]


LEFT, CENTRE, RIGHT = columns(3)


def channel_mixing(x: float, head: str = "channel mixing") -> Panel:
    return Panel(x, head, "one place, all|channels: an MLP,|the same for all").grid([MIDDLE]).channels(range(8))


def weight_bars(names: list[str], y: float) -> str:
    """The weights that the image decides, one for each panel."""
    bars = ""
    for x, name, share in zip((LEFT, CENTRE, RIGHT), names, (0.5, 0.2, 0.3), strict=True):
        bars += rect(x - 30, y, 60, 7, "empty") + rect(x - 30, y, 60 * share, 7, "decided")
        bars += rect(x - 30, y, 60, 7, "line") + text(x, y + 20, f"times {name}")
    return bars


# --- shifts: the place that channel group g of the middle comes from --------------------------------------------------

AROUND = {"above": (-1, 0), "below": (1, 0), "left": (0, -1), "right": (0, 1)}
S2 = ("above", "below", "left", "right")
S2_EXCHANGED = ("left", "right", "above", "below")


def s2_source(group: int, place: Place, order: tuple[str, ...] = S2) -> Place:
    """Where group 0..3 of a place comes from: a neighbour, or itself where that is outside."""
    i, j = (a + b for a, b in zip(place, AROUND[order[group]], strict=True))
    return (i, j) if 0 <= i < N and 0 <= j < N else place


def as_source(chunk: int, place: Place, axis: int, size: int = 5) -> Place:
    """Where a chunk of channels of a place comes from; outside there are zeros."""
    i, j = place
    by = chunk - size // 2
    return (i - by, j) if axis == 0 else (i, j - by)


def around(order: tuple[str, ...]) -> dict[Place, str]:
    return {s2_source(g, MIDDLE, order): str(g + 1) for g in range(4)}


# --- the drawings -----------------------------------------------------------------------------------------------------


def legend() -> str:
    y, rows = (
        22,
        [
            ("learnt", "weights that are learnt, and the same for every image"),
            ("moved", "moved or copied, without weights"),
            ("decided", "weights that the image decides"),
        ],
    )
    parts = [
        rect(14, y, 14, 14, "target"),
        text(40, y + 11, "the value that is computed: a place, and a channel of it"),
    ]
    for i, (kind, words) in enumerate(rows, 1):
        parts += [rect(14, y + 22 * i, 14, 14, kind), text(40, y + 22 * i + 11, words)]
    parts += [rect(14, y + 88, 14, 14, "zero"), text(40, y + 99, "outside of the image: zeros")]
    parts.append(text(14, y + 124, "Squares: the places of a grid. The strip below: channels."))
    body = "".join(parts).replace("<text ", '<text style="text-anchor: start" ')
    return drawing("What the colours of the drawings mean", body, height=160)


def mixer() -> str:
    first = Panel(LEFT, "token mixing", "all places, one|channel: an MLP,|the same for all").grid(EVERYWHERE)
    x, y = CENTRE, TOP
    hourglass = text(x, TOP - 8, "that MLP", "head") + "".join(
        rect(x - 40 + i * 35, y + (GRID - h) / 2, 10, h, kind)
        for i, (h, kind) in enumerate([(GRID, "learnt"), (GRID / 2, "learnt"), (GRID, "learnt")])
    )
    hourglass += "".join(arrow(x - 28 + i * 35, y + GRID / 2, x - 8 + i * 35, y + GRID / 2) for i in range(2))
    hourglass += text(x - 18, y + GRID / 2 - 8, "W1") + text(x + 17, y + GRID / 2 - 8, "W2")
    for i, words in enumerate(("S", "D_S", "S")):
        hourglass += text(x - 35 + i * 35, y + GRID + 14, words)
    return drawing("Mixer: token mixing and channel mixing", first.channels([3]), hourglass, channel_mixing(RIGHT))


def resmlp() -> str:
    first = Panel(LEFT, "token mixing", "all places, one|channel: a matrix,|the same for all").grid(EVERYWHERE)
    places = N * N
    row = MIDDLE[0] * N + MIDDLE[1]
    matrix = Panel(CENTRE, "that matrix", "S x S; a row|for every place", n=places)
    cell = matrix.cell
    matrix.parts += [
        rect(matrix.left, matrix.top, GRID, GRID, "learnt", 0.35),
        rect(matrix.left, matrix.top + row * cell, GRID, cell, "learnt"),
        rect(matrix.left, matrix.top, GRID, GRID, "line"),
        rect(matrix.left - 2, matrix.top + row * cell - 1.5, GRID + 4, cell + 3, "target"),
    ]
    return drawing("ResMLP: one matrix over the places", first.channels([3]), matrix, channel_mixing(RIGHT))


def gmlp() -> str:
    gate = Panel(LEFT, "the gate", "all places, one|channel of the|second half: W").grid(EVERYWHERE)
    value = Panel(CENTRE, "what it gates", "the place itself,|that channel of|the first half").grid([MIDDLE], "decided")
    linear = Panel(RIGHT, "before, after", "one place, all|channels: a linear|layer each").grid([MIDDLE])
    return drawing(
        "gMLP: half of the channels gates the other half",
        gate.channels([5], target=None), sign(CENTRE - 60, TIMES), value.channels([1], "decided", 1),
        linear.channels(range(8), target=None),
    )  # fmt: skip


def s2_mlp() -> str:
    parts: list[Panel | str] = []
    side, corner = 64, (0, 0)
    lower = TOP + side + 62
    for g, x in enumerate(columns(4)):
        middle = Panel(x, f"from {S2[g]}", "", side=side).grid([s2_source(g, MIDDLE)], "moved")
        middle.move(s2_source(g, MIDDLE), MIDDLE).channels({2 * g, 2 * g + 1}, "moved", None)
        border = Panel(x, "", "", side=side, top=lower).grid([s2_source(g, corner)], "moved", corner)
        parts += [middle, border.move(s2_source(g, corner), corner)]
    words = (
        "a quarter of the channels each; linear layers follow",
        "At the border, what nothing moves into keeps its own:",
    )
    parts += [text(WIDTH / 2, TOP + side + 32 + 20 * i, line) for i, line in enumerate(words)]
    return drawing("S2-MLP: four groups of channels move by one place", *parts, height=lower + side + 12)


def s2_mlpv2() -> str:
    parts = []
    for x, order, head in ((LEFT, S2, "part 1"), (CENTRE, S2_EXCHANGED, "part 2")):
        panel = Panel(x, head, "four groups, a|neighbour each").grid(around(order), "moved", digits=around(order))
        parts.append(panel.channels(range(4), "moved", None, 4, "1234"))
    parts.append(
        Panel(RIGHT, "part 3", "the place itself").grid([MIDDLE], "moved").channels(range(4), "moved", None, 4)
    )
    bars = weight_bars(["a1", "a2", "a3"], TOP + GRID + 58)
    bars += text(WIDTH / 2, TOP + GRID + 97, "a: a softmax for each channel, from the sum of everything")
    return drawing("S2-MLPv2: three parts, weighed by the image", *parts, bars, height=212)


def as_mlp() -> str:
    parts = []
    five = [str(i + 1) for i in range(5)]
    for x, axis, head in ((LEFT, 1, "along the row"), (CENTRE, 0, "the column")):
        sources = {as_source(g, MIDDLE, axis): digit for g, digit in enumerate(five)}
        panel = Panel(x, head, "five chunks of|channels, from|five places").grid(sources, "moved", digits=sources)
        parts.append(panel.channels(range(5), "moved", None, 5, five))
    border, side = (2, 0), 65
    sources = {as_source(g, border, 1): digit for g, digit in enumerate(five)}
    inside = {p: digit for p, digit in sources.items() if p[1] >= 0}
    digits = inside | {p: "0" for p in sources if p[1] < 0}
    last = Panel(RIGHT + 10, "at the border", "zeros come in", side=side, top=TOP + 8)
    last.parts[0] = text(RIGHT, TOP - 8, "at the border", "head")
    last.grid(inside, "moved", border, digits=digits).channels(range(3), "moved", None, 5, ["1", "2", "3", "0", "0"])
    return drawing("AS-MLP: chunks of channels move along rows and columns", *parts, last)


def vip() -> str:
    height = Panel(LEFT, "height", "a column, and a|segment of channels").grid([(i, 2) for i in range(N)])
    width = Panel(CENTRE, "width", "a row, and a|segment of channels").grid([(2, j) for j in range(N)])
    channels = Panel(RIGHT, "channels", "the place itself,|all channels").grid([MIDDLE])
    bars = weight_bars(["a_h", "a_w", "a_c"], TOP + GRID + 58)
    bars += text(WIDTH / 2, TOP + GRID + 97, "a: a softmax for each channel, from the mean of everything")
    return drawing(
        "Vision Permutator: rows, columns and channels, weighed by the image",
        height.channels([2], target=2, n=N), width.channels([2], target=2, n=N),
        channels.channels(range(N), target=2, n=N), bars, height=212,
    )  # fmt: skip


def near(place: Place = MIDDLE, by: int = 1) -> list[Place]:
    return [(place[0] + i, place[1] + j) for i in range(-by, by + 1) for j in range(-by, by + 1)]


def repmlpnet() -> str:
    sets = "01010101"
    matrix = Panel(LEFT, "share-set matrix", "all places, one|channel c, by matrix|number c mod S").grid(EVERYWHERE)
    local = Panel(CENTRE, "to train, also", "convolutions,|which fold into|the matrix").grid(near())
    gate = Panel(RIGHT, "gate", "a factor for each|channel, from the|mean of all places")
    gate.grid(EVERYWHERE, "decided", None, lambda p: 0.55)
    return drawing(
        "RepMLPNet: share-sets, convolutions that fold, and a gate",
        matrix.channels([3], digits=sets), sign((LEFT + CENTRE) / 2, PLUS), local.channels([3], digits=sets),
        sign((CENTRE + RIGHT) / 2, TIMES), gate.channels(range(8), "decided"),
    )  # fmt: skip


def repmlp() -> str:
    n, target = 6, (1, 1)
    tile = [(i, j) for i in range(3) for j in range(3)]

    def framed(x: float, head: str, words: str, sources: Iterable[Place], at: Place) -> Panel:
        panel = Panel(x, head, words, n=n).grid(sources, target=at)
        panel.parts.append(
            f'<path d="M{x:g} {panel.top:g} V{panel.bottom:g} M{panel.left:g} {panel.top + GRID / 2:g} h{GRID}" '
            'class="line" style="stroke-width: 3"/>'
        )
        return panel.channels(range(8))

    everywhere = [(i, j) for i in range(n) for j in range(n)]
    means = framed(LEFT, "first, added", "the means of all|tiles and channels,|by an MLP", everywhere, target)
    matrix = framed(CENTRE, "in a tile", "its places and|channels: one|matrix", tile, target)
    edge = (2, 1)
    local = framed(
        RIGHT,
        "to train, also",
        "convolutions, zeros|around the tile;|these fold, too",
        set(near(edge)) & set(tile),
        edge,
    )
    return drawing("RepMLP: tiles, a matrix and convolutions", means, matrix, sign((CENTRE + RIGHT) / 2, PLUS), local)


def eamlp() -> str:
    slots = 6
    shares = [0.15, 0.3, 0.1, 0.2, 0.05, 0.2]

    def attention(place: Place) -> float:
        return 0.15 + 0.85 * math.exp(-((place[0] - 1) ** 2 + (place[1] - 3) ** 2) / 3)

    ask = Panel(LEFT, "ask the memory", "a head of a place|times M_k: a number|for each slot").grid([MIDDLE])
    share = Panel(CENTRE, "share a slot out", "softmax over places;|then each place over|its slots, to sum 1")
    share.grid(EVERYWHERE, "decided", MIDDLE, attention)
    memory = Panel(RIGHT, "read the memory", "slots M_v in these|shares; the same|for every image")
    h = GRID / slots
    for i, part in enumerate(shares):
        y = memory.top + i * h
        memory.parts += [
            rect(memory.left, y + 2, 26 * part / max(shares), h - 4, "decided"),
            rect(memory.left + 32, y + 1, 48, h - 2, "learnt"),
        ]
    return drawing(
        "External attention: a memory that all images share", ask.channels([2, 3], target=None), share, memory
    )


def vit() -> str:
    x, y = columns(2)
    attention = Panel(x, "attention", "all places, a head|of channels; shares|from the image")
    attention.grid(EVERYWHERE, "decided", MIDDLE, lambda p: 0.2 + 0.8 * ((3 * p[0] + 5 * p[1]) % 7) / 7)
    return drawing("ViT: attention", attention.channels([2, 3], "decided"), channel_mixing(y))


def resnet() -> str:
    x, y = columns(2)
    at = (3, 3)
    first = Panel(x, "a convolution", "3 x 3 places, all|channels; the same|for every place", n=7)
    second = Panel(y, "after another", "5 x 5 places: the|view grows with|the depth", n=7)
    first.grid(near(at), target=at).channels(range(8))
    return drawing("ResNet: convolutions", first, second.grid(near(at, 2), target=at).channels(range(8)))


DRAWINGS = {
    "legend": legend, "mixer": mixer, "resmlp": resmlp, "gmlp": gmlp, "s2-mlp": s2_mlp, "s2-mlpv2": s2_mlpv2,
    "as-mlp": as_mlp, "vip": vip, "repmlpnet": repmlpnet, "repmlp": repmlp, "eamlp": eamlp, "vit": vit,
    "resnet": resnet,
}  # fmt: skip

if __name__ == "__main__":
    OUT.mkdir(exist_ok=True)
    for name, draw in DRAWINGS.items():
        (OUT / f"{name}.svg").write_text(draw(), encoding="utf-8")
