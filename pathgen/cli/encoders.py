"""The command that lists the encoders one can name."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from pathgen.cli.options import AsJson, Quiet, Verbose
from pathgen.cli.root import app
from pathgen.console import Talk, guarded, table


@app.command("encoders")
@guarded
def encoders_command(
    name: Annotated[
        str | None, typer.Argument(help="Of one: its card, and how to get it. Default: all.")
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """The public encoders by short name: length, scale, license, access."""
    from pathgen.encoders.own import plugins
    from pathgen.encoders.weights import offline
    from pathgen.encoders.zoo import named, public_encoders, unknown

    talk = Talk(quiet=quiet, as_json=as_json)
    offered = plugins()
    if name is not None:
        row = named(name)
        if row is not None:
            talk.result(row.card, f"{_about(row.card)}\n{offline(row.origin)}.", _use(row.name))
            return
        if name not in offered:
            raise unknown(name, offered)
        values = {"name": name, "library": "plug-in", "source": offered[name].value}
        talk.result(values, f"{name}: of an installed package, {values['source']}.", _use(name))
        return
    cards = [row.card for row in public_encoders().values()]
    cards += [
        {"name": point.name, "library": "plug-in", "source": point.value}
        for point in offered.values()
    ]
    columns = ("name", "dim", "px", "mpp", "library", "gated", "commercial", "license")
    talk.result(
        {"encoders": cards},
        table([_line(card) for card in cards], columns)
        + "\ngated: access has to be asked for. commercial: whether the license allows it.",
        "pathgen encoders NAME",
    )


def _line(card: dict[str, Any]) -> dict[str, str]:
    if "dim" not in card:
        return {"name": card["name"], "library": card["library"], "license": card["source"]}
    return {
        "name": card["name"], "dim": str(card["dim"]), "px": str(card["image_size"]),
        "mpp": _scales(card), "library": card["library"],
        "gated": "yes" if card["gated"] else "no",
        "commercial": "yes" if card["commercial"] else "no", "license": card["license"],
    }  # fmt: skip


def _scales(card: dict[str, Any]) -> str:
    return ", ".join(f"{mpp:g}" for mpp in card["mpp"]) or "any"


def _about(card: dict[str, Any]) -> str:
    """What a person wants to know before using it."""
    resized = f", from {card['resize']}" if card["resize"] != card["image_size"] else ""
    use = "allowed" if card["commercial"] else "not allowed"
    lines = [
        card["title"],
        f"  vector      {card['dim']} numbers: {VECTORS[card['vector']]}",
        f"  sees        {card['image_size']} px{resized} ({card['interpolation']})",
        f"  scale       {_scales(card)} um per pixel; patches of {card['patch_size']} px",
        f"  license     {card['license']}; commercial use {use}",
        f"  weights     {card['source']}",
        f"  cite        {card['citation']}",
    ]
    if card["note"]:
        lines.append(f"  note        {card['note']}")
    if card["gated"]:
        lines.append(
            f"To get it: accept the license at {card['access']}, make a token in your account's "
            "settings there, and set HF_TOKEN to it (or run `hf auth login`)."
        )
    else:
        lines.append(f"To get it: nothing to ask for; the license stands at {card['access']}.")
    return "\n".join(lines)


VECTORS = {
    "cls": "the class token",
    "cls+mean": "the class token, then the mean of the patch tokens",
    "mean": "the mean of the patch tokens",
    "attention": "attention pooling over all tokens",
    "pooled": "the average of the last map",
    "third": "the average of the third stage's map",
}


def _use(name: str) -> str:
    return f"pathgen extract-features tiles/ --encoder {name} -o features/{name}"
