"""README.md as a package index shows it: with links that lead into the project from anywhere.

What a checkout installs as a folder is installed by its name there.
"""

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface


class Readme(MetadataHookInterface):
    """Fills in ``readme``; pyproject.toml alone knows where the project lives."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Pictures lead to the file itself, everything else to its page."""
        source = metadata["urls"]["Source"]
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        text = re.sub(r"(!\[[^\]]*\])\((?!https?:)", rf"\1({source}/raw/main/", text)
        text = re.sub(r"(?<!\!)(\[[^\]]*\])\((?!https?:)", rf"\1({source}/blob/main/", text)
        text = text.replace("From a checkout, with Python", "With Python")
        text = re.sub(r"(pip install '?)\.(?=[\n\[])", rf"\1{metadata['name']}", text)
        metadata["readme"] = {"content-type": "text/markdown", "text": text}
