"""Names of SB3's files become links to its repository. Ours have no public address that we know of: they stay plain."""

from __future__ import annotations

import re

SB3 = "https://github.com/DLR-RM/stable-baselines3/blob/v2.9.2/"
"""The version whose functions the pages name"""
SB3_FILE = re.compile(r"(?<!\">)<code>(stable_baselines3/[\w/]+\.py)</code>")


def link_sb3(content: str) -> str:
    """The HTML of a page, with links around the names of files that are not within one already."""
    return SB3_FILE.sub(lambda match: f'<a href="{SB3}{match.group(1)}">{match.group(0)}</a>', content)
