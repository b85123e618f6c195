"""The pages of the ready configs: one for each folder of `configs/`."""

import re
from pathlib import Path

from tools.docs_site.links import CONFIGS

LANGUAGES = {".yaml": "yaml", ".sbatch": "bash", ".sh": "bash", ".py": "python"}
"""Which files are shown, and in which language they are."""
TITLES = {
    "": "Ready configs",
    "models": "Models",
    "recipes": "Recipes",
    "scale": "Scale",
    "track": "Tracking",
    "examples": "Examples",
}


def pages(root: Path) -> dict[str, str | bytes]:
    """Text of each page, by its place in the site."""
    found: dict[str, list[Path]] = {}
    for file in sorted(one for one in (root / "configs").rglob("*") if one.suffix in LANGUAGES):
        folder = str(file.parent.relative_to(root / "configs"))
        found.setdefault("" if folder == "." else folder, []).append(file)
    made: dict[str, str | bytes] = {}
    for folder, files in found.items():
        title = TITLES.get(folder, folder.replace("/", ": "))
        lines = [f"# {title if not folder else f'Configs: {title.lower()}'}\n"]
        if folder:
            lines.append("Each is found by its name, and printed by `lightning-vlm recipes NAME`:")
            example = f"{folder}/{files[0].stem}"
            lines.append(f"`lightning-vlm fit --config {example} ...`.\n")
        else:
            lines.append("They come with the package and are found by name: `--config recipes/qlora`;")
            lines.append("several `--config` are merged, later ones win.\n")
            lines += [
                f"- [{TITLES.get(one, one)}]({one}.md): {len(found[one])}" for one in sorted(found) if one
            ]
            lines.append("")
        for file in files:
            text = file.read_text("utf-8")
            name = file.name.removesuffix(".yaml")
            lines += [f"## {name}\n", f"```{LANGUAGES[file.suffix]}\n{text.rstrip()}\n```\n"]
        made[f"{CONFIGS}/{folder or 'index'}.md"] = re.sub(r"\n{3,}", "\n\n", "\n".join(lines))
    return made
