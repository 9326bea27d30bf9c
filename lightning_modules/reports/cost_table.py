"""The costs of a network as text: a table of its layers, and what they add up to."""

from __future__ import annotations

from bnfree.costs import LayerCost, NetworkCost

WIDTH = 120
TITLES = (
    ("layer", "kind", "input -> output", "kernel", "binary", "real", "BOPs", "FLOPs", "OPs", "density", "bits"),
    ("", "", "", "", "params", "params", "", "", "", "", ""),
)
LEGEND = "W1: weights of 1 bit, A1: input of 1 bit, 32: real"


def cost_table(cost: NetworkCost) -> str:
    """The layers, one a line of at most 120 characters, and a line of totals; long names are cut at their beginning."""
    total = ("total", "", "", "", *_figures(cost), short(sum(row.bits for row in cost.rows)))
    cells = [*TITLES, *(_cells(row) for row in cost.rows), total]
    widths = [max(len(line[column]) for line in cells) for column in range(len(TITLES[0]))]
    widths[0] = max(8, min(widths[0], WIDTH - sum(widths[1:]) - 2 * (len(widths) - 1)))
    lines = ["  ".join(_padded(text, w, i < 4) for i, (text, w) in enumerate(zip(line, widths, strict=True))).rstrip()
             for line in cells]  # fmt: skip
    rule = "-" * max(map(len, lines))
    return "\n".join([*lines[:2], rule, *lines[2:-1], rule, lines[-1]])


def cost_totals(cost: NetworkCost) -> str:
    """What the table adds up to, in sentences."""
    lines = [
        f"Operations  {power(cost.ops)} OPs = {power(cost.bops)} BOPs / 64 + {power(cost.flops)} FLOPs, one for each "
        "multiply-accumulate of a"
    ]
    lines += ["            convolution or linear layer"]
    if cost.bops_on_real_input:
        strict = (cost.bops - cost.bops_on_real_input) / 64 + cost.flops + cost.bops_on_real_input
        lines += [
            f"            {power(cost.bops_on_real_input)} of the BOPs have a real input (W1A32); counted as FLOPs: "
            f"{power(strict)} OPs"
        ]
    step1 = sum(row.flops for row in cost.rows if row.binary_input)
    if step1:
        lines += [f"            {power(step1)} of the FLOPs have binary activations, but real weights (W32A1): step 1"]
    if cost.uncounted:
        more = f" and {len(cost.uncounted) - 2} more" if len(cost.uncounted) > 2 else ""
        lines += [f"            not counted: {', '.join(cost.uncounted[:2])}{more}"]
    ratio = cost.bytes_float32 / cost.bytes_packed if cost.bytes_packed else 1.0
    lines += [
        f"Storage     {_megabytes(cost.bytes_packed)} packed, {_megabytes(cost.bytes_float32)} in float32: "
        f"{ratio:.1f} times smaller",
        "            binary weights 1 bit (2 with a mask), weights of real layers 16 bits, other numbers 32 bits",
        f"Density     {cost.density:.4g} of the effective weights are not 0",
    ]
    return "\n".join(lines)


def short(count: float) -> str:
    """A count in at most five characters, such as 36.9k or 1.2M."""
    for unit in ("", "k", "M", "G"):
        if count < 999.5:
            return f"{count:.3g}{unit}"
        count /= 1000
    return f"{count:.3g}T"


def power(count: float) -> str:
    """A count as papers write it, such as 1.64e8."""
    if count < 1000:
        return f"{count:.3g}"
    mantissa, _, exponent = f"{count:.2e}".partition("e")
    return f"{mantissa}e{int(exponent)}"


def _cells(row: LayerCost) -> tuple[str, ...]:
    layer = row.kind != "other"
    kind = f"W{1 if row.binary_weights else 32}A{1 if row.binary_input else 32}" if layer else ""
    shapes = f"{_shape(row.input_shape)} -> {_shape(row.output_shape)}" if row.input_shape else "not used" * layer
    kernel = "linear" if row.kind == "linear" else _shape(row.kernel_size)
    if any(stride != 1 for stride in row.stride):
        kernel += f"/{row.stride[0] if len(set(row.stride)) == 1 else _shape(row.stride)}"
    return row.name, kind, shapes, kernel, *_figures(row), short(row.bits)


def _figures(cost: LayerCost | NetworkCost) -> tuple[str, ...]:
    counts = (cost.binary_params, cost.real_params, cost.bops, cost.flops, cost.ops)
    density = "" if isinstance(cost, LayerCost) and cost.kind == "other" else f"{cost.density:.3g}"
    return *(short(count) if count else "-" for count in counts), density


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.{2 if count >= 1e6 else 4}f} MB"


def _shape(sizes: tuple[int, ...]) -> str:
    return "x".join(map(str, sizes))


def _padded(text: str, width: int, left: bool) -> str:
    if len(text) > width:
        text = "..." + text[len(text) - width + 3 :]
    return text.ljust(width) if left else text.rjust(width)
