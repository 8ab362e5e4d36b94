"""A choice in words: what to take, what it saves, and a line for each net."""

from __future__ import annotations

from nas_transfer.report.choice import LATENCY, NARROWED, RESIZED, WHOLE, Candidate, Choice
from nas_transfer.report.nets import dataset
from nas_transfer.report.tables import Table
from nas_transfer.report.texts import NONE, millions, percent

SECOND_LABELS = {
    "map_50": "mAP50", "map_50_segm": "mask mAP50", "ap_50": "AP50", "top5": "top-5",
    "pixel_accuracy": "pixel accuracy",
}  # fmt: skip

WAYS = {RESIZED: "on smaller images", NARROWED: "with narrower heads"}
"""How one makes a whole network cheaper by hand, by the origin of the net."""


def title_text(choice: Choice) -> str:
    """The answer in a title."""
    run = choice.pick.net.run
    data = dataset(run)
    return f"{run.task}{'' if data == NONE else f' on {data}'}: take {choice.pick.name}"


def answer_text(choice: Choice) -> str:
    """What the recommended net scores and costs, and what it saves."""
    pick = choice.pick
    measured = measure_text(pick, choice)
    parts = [f"{pick.name} ({pick.origin}) is the cheapest net within 1 point of the best score: {measured}."]
    if len(choice.candidates) == 1:
        text = f"{pick.name} ({pick.origin}) is the only trained net: {measured}."
        return " ".join([text, *(_comparison(choice) if not pick.is_baseline else ())])
    return " ".join([*parts, *_comparison(choice)])


def _comparison(choice: Choice) -> list[str]:
    pick, whole = choice.pick, choice.whole
    if whole is None:
        return ["The whole network was not trained on this dataset: train arch=max to see what the search is worth."]
    size = whole.net.result.costs.size
    if pick.is_baseline:
        place = pick.net.result.costs.size
        sentence = f"Nothing here beats the whole network at {place}: no cheaper net comes within 1 point of it."
        if pick.origin != WHOLE:
            sentence = (
                f"Nothing here beats the whole network {WAYS[pick.origin]}: at {place} it "
                f"{_saving(pick, whole, choice)}, compared with the whole network at {size}."
            )
        return [sentence, *_winners(choice)]
    return [
        f"It {_saving(pick, whole, choice)}, compared with the whole network at {size}.",
        *_against_baselines(choice, pick),
    ]


def _saving(one: Candidate, whole: Candidate, choice: Choice) -> str:
    """What a net saves of the costs of the whole network, and at how many points."""
    points = 100 * (one.net.score - whole.net.score)
    macs = 1 - one.macs / whole.macs
    text = f"saves {100 * macs:.0f} % of the MACs" if macs >= 0 else f"costs {-100 * macs:.0f} % more MACs"
    latency, of_whole = choice.cost(one, LATENCY), choice.cost(whole, LATENCY)
    if latency is not None and of_whole:
        share = 1 - latency / of_whole
        text += f" and {abs(100 * share):.0f} % {'of the' if macs >= 0 else 'more'} latency"
        if (share >= 0) != (macs >= 0):
            text = f"has {-100 * macs:+.0f} % MACs and {-100 * share:+.0f} % latency"
    return f"{text} at {points:+.1f} points"


def _against_baselines(choice: Choice, pick: Candidate) -> list[str]:
    gain = choice.gain(pick)
    if gain is None or len(choice.baselines) < 2:
        return []
    whole = _baselines(choice)
    if gain > 0:
        return [f"The {whole} would score {100 * gain:.1f} points less at the same MACs."]
    return [f"But the {whole} scores {-100 * gain:.1f} points more at the same MACs."]


def _baselines(choice: Choice) -> str:
    """The whole network, and how it was made cheaper by hand."""
    ways = [way for origin, way in WAYS.items() if any(one.origin == origin for one in choice.candidates)]
    return f"whole network {' or '.join(ways)}" if ways else "whole network"


def _winners(choice: Choice) -> list[str]:
    """Where a search helps although it is not the recommended net."""
    winners = choice.winners
    if not winners:
        return _below(choice)
    best = max(winners, key=lambda one: choice.gain(one) or 0.0)
    gain = choice.gain(best) or 0.0
    return [
        f"At a lower budget, {best.name} scores {100 * gain:.1f} points more than the {_baselines(choice)} at "
        f"the same MACs ({measure_text(best, choice)})."
    ]


def _below(choice: Choice) -> list[str]:
    """The nets that are too cheap to be compared with the whole network."""
    below = choice.below
    if not below:
        return []
    best = max(below, key=lambda one: one.net.score)
    cheapest = choice.baselines[0]
    subject = f"{len(below)} nets cost" if len(below) > 1 else "1 net costs"
    which = f"at {cheapest.net.result.costs.size}, the smallest input that it was trained at"
    if cheapest.origin == NARROWED:
        which = f"{WAYS[NARROWED]}, the cheapest form of it that was trained"
    return [
        f"{subject} less than the whole network {which}; the best of them is {best.name} "
        f"({measure_text(best, choice)})."
    ]


def measure_text(one: Candidate, choice: Choice) -> str:
    """Scores and costs of a net in one line."""
    kind, costs = one.net.kind, one.net.result.costs
    texts = [f"{percent(one.net.score)} % {kind.score_label}"]
    if one.second is not None:
        texts.append(f"{percent(one.second[1])} % {second_label(one.second[0])}")
    texts.append(f"{millions(one.macs)} M MACs")
    latency = choice.cost(one, LATENCY)
    texts += [f"{latency:.3g} ms with {choice.engine}"] if latency is not None else []
    return ", ".join([*texts, f"{millions(costs.params['total'])} M params", f"input {costs.size}"])


def second_label(key: str) -> str:
    """The heading of a second metric."""
    return SECOND_LABELS.get(key, key)


def line_text(one: Candidate, choice: Choice) -> str:
    """The line of the slider for a net: what it is, what it measures, and how it compares with the whole network."""
    text = f"{one.name} ({one.origin}): {measure_text(one, choice)}"
    if choice.whole is None or one == choice.whole:
        return text
    return f"{text}; {_saving(one, choice.whole, choice)}, compared with the whole network"


def range_text(choice: Choice) -> str:
    """The MACs that searches could choose from beside those of their fronts; empty without a search."""
    if choice.front is None:
        return ""
    front = " to ".join(map(millions, choice.front))
    if choice.attainable is None:
        return f"The front of the search reaches from {front} M MACs."
    return (
        f"The space reaches from {' to '.join(map(millions, choice.attainable))} M MACs, and the front from {front} M."
    )


def choice_table(choice: Choice) -> Table:
    """A row for each net, the cheapest first."""
    first = choice.pick.net
    second = choice.pick.second
    columns = ["run", "origin", "input", "params (M)", "MACs (M)"]
    columns += [f"latency (ms), {choice.engine}"] if choice.engine is not None else []
    columns += [f"{first.kind.score_label} (%)"]
    columns += [f"{second_label(second[0])} (%)"] if second is not None else []
    columns += ["recommended"]
    rows = []
    for one in choice.candidates:
        costs = one.net.result.costs
        row = [one.name, one.origin, costs.size, millions(costs.params["total"]), millions(one.macs)]
        if choice.engine is not None:
            latency = choice.cost(one, LATENCY)
            row.append(NONE if latency is None else f"{latency:.3g}")
        row.append(percent(one.net.score))
        if second is not None:
            row.append(percent(one.net.result.metrics.get(second[0])))
        rows.append((*row, "yes" if one == choice.pick else ""))
    note = (
        "Recommended: the cheapest net within 1 point of the best score. Scores are on the validation split, of one "
        "training each: with few validation images, differences of some points can be chance."
    )
    return Table("Trained nets", tuple(columns), tuple(rows), note)
